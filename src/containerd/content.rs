//! Reading the content store: what is there, small blobs whole, ingests under way.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use tonic::Code;

use super::{CallError, Namespace, client::ANSWER_MAX};
use crate::{
    oci::Digest,
    wire::containerd::services::content::v1::{
        AbortRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest, StatusRequest, UpdateRequest,
    },
};

/// Most entries taken from one listing. A node with 300 images has some 10,000 blobs; the limit only keeps
/// a runaway listing from filling memory.
const LISTED_MAX: usize = 1 << 17;

/// What containerd knows of a blob in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentInfo {
    pub digest: Digest,
    /// Bytes.
    pub len: u64,
    pub labels: BTreeMap<String, String>,
    pub created_at: Option<SystemTime>,
    /// Absent from listings of containerd 1.6 and 1.7; [`Namespace::info`] has it everywhere.
    pub updated_at: Option<SystemTime>,
}

/// An ingest: a blob that is being written, or was left half-written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    /// Bytes written so far.
    pub offset: u64,
    /// Bytes that there will be; 0 if nobody said.
    pub total: u64,
}

/// Why a small blob could not be read whole.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{digest} is not in namespace {namespace} of containerd")]
    Missing { namespace: String, digest: Digest },
    #[error("{digest} has more than the {max} bytes that are read of such a blob")]
    TooLarge { digest: Digest, max: usize },
}

impl Namespace {
    /// What containerd knows of the blob; `None` if this namespace does not have it.
    ///
    /// # Errors
    /// The call failed.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ContentInfo>, CallError> {
        let asked = format!("describe blob {digest} in namespace {}", self.name());
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        let answer = found(self.client.ask(&asked, self.content().info(request)).await)?;
        Ok(answer.and_then(|answer| answer.info).and_then(content_info))
    }

    /// Blobs that match any of `filters` (containerd's filter syntax; none: all). Blobs under algorithms that
    /// cannot be checked are left out.
    ///
    /// # Errors
    /// The call failed.
    pub async fn list(&self, filters: &[&str]) -> Result<Vec<ContentInfo>, CallError> {
        let asked = format!("list blobs in namespace {}", self.name());
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = self.request(ListContentRequest { filters })?;
        let mut pages = self.client.ask(&asked, self.content().list(request)).await?;
        let mut listed = Vec::new();
        while let Some(page) = self.client.within(ANSWER_MAX, &asked, pages.message()).await? {
            listed.extend(page.info.into_iter().filter_map(content_info));
            if listed.len() > LISTED_MAX {
                tracing::warn!(
                    namespace = self.name(),
                    LISTED_MAX,
                    "listing of containerd's content cut short"
                );
                break;
            }
        }
        Ok(listed)
    }

    /// The whole blob, if it has at most `max` bytes. The bytes are not checked against the digest.
    ///
    /// # Errors
    /// The blob is missing or larger, or the call failed.
    pub async fn read(&self, digest: &Digest, max: usize) -> Result<Bytes, ReadError> {
        let missing = || ReadError::Missing { namespace: self.name().into(), digest: digest.clone() };
        let too_large = || ReadError::TooLarge { digest: digest.clone(), max };
        let asked = format!("read blob {digest} in namespace {}", self.name());
        let message = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let request = self.request(message)?;
        let mut content = self.content();
        let mut chunks = found(self.client.ask(&asked, content.read(request)).await)?.ok_or_else(missing)?;
        let mut bytes = BytesMut::new();
        loop {
            let chunk = self.client.within(ANSWER_MAX, &asked, chunks.message()).await;
            let Some(chunk) = found(chunk)?.ok_or_else(missing)? else { return Ok(bytes.freeze()) };
            if bytes.len() + chunk.data.len() > max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk.data);
        }
    }

    /// The ingest under `ref`; `None` if there is none.
    ///
    /// # Errors
    /// The call failed.
    pub async fn status(&self, r#ref: &str) -> Result<Option<IngestStatus>, CallError> {
        let asked = format!("tell how far {ref:?} has got in namespace {}", self.name());
        let request = self.request(StatusRequest { r#ref: r#ref.to_owned() })?;
        let answer = found(self.client.ask(&asked, self.content().status(request)).await)?;
        Ok(answer
            .and_then(|answer| answer.status)
            .map(|status| IngestStatus { offset: unsigned(status.offset), total: unsigned(status.total) }))
    }

    /// Forgets the ingest under `ref` and its bytes. None there: that is what was wanted.
    ///
    /// # Errors
    /// The call failed.
    pub async fn abort(&self, r#ref: &str) -> Result<(), CallError> {
        let asked = format!("forget the ingest {ref:?} in namespace {}", self.name());
        let request = self.request(AbortRequest { r#ref: r#ref.to_owned() })?;
        found(self.client.ask(&asked, self.content().abort(request)).await).map(drop)
    }

    /// Sets these labels of a blob and leaves its others; an empty value removes a label.
    ///
    /// # Errors
    /// The namespace does not have the blob, or the call failed.
    pub async fn set_labels(
        &self,
        digest: &Digest,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), CallError> {
        let asked = format!("label blob {digest} in namespace {}", self.name());
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info {
            digest: digest.to_string(),
            labels: labels.clone().into_iter().collect(),
            ..Info::default()
        };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = self.request(UpdateRequest { info: Some(info), update_mask })?;
        self.client.ask(&asked, self.content().update(request)).await.map(drop)
    }
}

/// "Not found" is an answer.
fn found<T>(result: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn content_info(info: Info) -> Option<ContentInfo> {
    Some(ContentInfo {
        digest: info.digest.parse().ok()?,
        len: unsigned(info.size),
        labels: info.labels.into_iter().collect(),
        created_at: info.created_at.and_then(system_time),
        updated_at: info.updated_at.and_then(system_time),
    })
}

/// containerd's sizes are signed and never negative.
fn unsigned(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}

/// Go's zero time, the year 1, means that nobody said.
pub(super) fn system_time(stamp: prost_types::Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(stamp.seconds).ok()?;
    let nanos = u32::try_from(stamp.nanos).ok().filter(|&nanos| nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_time_of_go_is_no_time() {
        let zero = prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 };
        assert_eq!(system_time(zero), None);
        let stamp = prost_types::Timestamp { seconds: 5, nanos: 7 };
        assert_eq!(system_time(stamp), Some(SystemTime::UNIX_EPOCH + Duration::new(5, 7)));
        assert_eq!(system_time(prost_types::Timestamp { seconds: 5, nanos: -1 }), None);
    }

    #[test]
    fn blobs_that_cannot_be_checked_are_left_out() {
        assert_eq!(content_info(Info { digest: "md5:00".into(), ..Info::default() }), None);
    }
}
