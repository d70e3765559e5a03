//! containerd's Write protocol, one message in flight.
//!
//! ```text
//! open: ref + expected + total, STAT ──► offset        the stream is now the lock on (namespace, ref)
//!                                    ──► AlreadyExists the namespace has the blob (and the lease has it too)
//!                                    ──► Unavailable   another stream is the lock
//! WRITE at offset, at most 4 MiB     ──► offset
//! COMMIT at offset, total, expected  ──► digest        on FAILED_PRECONDITION the ingest stays: abort it
//! half-close                         ──► end           only then is the lock surely gone
//! ```
//! `expected` stands only in the first message and in COMMIT. AlreadyExists may answer any of them, and the blob
//! is there then. Source: containerd `services/content/contentserver`.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{CallError, Namespace, client::ANSWER_MAX};
use crate::{
    oci::Digest,
    wire::containerd::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse},
};

/// Most bytes of content in one message: one of our pieces, and a quarter of what containerd takes.
pub(super) const DATA_LEN_MAX: usize = 4 << 20;

/// Longest wait for COMMIT: containerd syncs the blob first, and 16 GB at the 30 MB/s of a poor disk
/// takes this long.
const COMMIT_MAX: Duration = Duration::from_secs(600);

/// Longest wait for the end of a half-closed stream: containerd syncs what was written, at most one blob.
const CLOSE_MAX: Duration = Duration::from_secs(60);

/// What is to be written, as the first message fixes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) r#ref: &'a str,
    pub(super) digest: &'a Digest,
    pub(super) len: u64,
    pub(super) lease: Option<&'a str>,
}

/// How opening a stream went.
pub(super) enum Opened {
    /// The lock is ours. containerd has `offset` bytes; all of them means that another namespace has the blob.
    Ours { session: Session, offset: u64 },
    /// The namespace has the blob.
    Exists,
    /// Another stream holds the lock.
    Locked,
}

/// How COMMIT went.
pub(super) enum Committed {
    Now,
    /// Somebody was faster.
    Before,
}

/// An open Write stream: the lock on its ref for as long as it lives.
#[derive(Debug)]
pub(super) struct Session {
    namespace: Namespace,
    asked: String,
    digest: Digest,
    len: u64,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Box<Streaming<WriteContentResponse>>,
}

impl Session {
    /// Takes the lock on `target.ref` if it is free.
    ///
    /// # Errors
    /// The call failed for another reason than the blob's being there or the ref's being locked.
    pub(super) async fn open(namespace: &Namespace, target: Target<'_>) -> Result<Opened, CallError> {
        let asked = format!("write {:?} in namespace {}", target.r#ref, namespace.name());
        // One message is in flight at any time.
        let (requests, queue) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: target.r#ref.to_owned(),
            total: signed(target.len),
            expected: target.digest.to_string(),
            ..WriteContentRequest::default()
        };
        requests.try_send(first).expect("a new queue has room for one message");
        let request = namespace.leased_request(ReceiverStream::new(queue), target.lease)?;
        let mut content = namespace.content();
        let client = &namespace.client;
        let opening = async {
            let mut answers = client.ask(&asked, content.write(request)).await?;
            let stat = client.within(ANSWER_MAX, &asked, answers.message()).await?;
            Ok::<_, CallError>((Box::new(answers), stat))
        };
        let (answers, stat) = match opening.await {
            Ok(answers) => answers,
            Err(error) if error.code() == Some(Code::AlreadyExists) => return Ok(Opened::Exists),
            Err(error) if is_locked(&error) => return Ok(Opened::Locked),
            Err(error) => return Err(error),
        };
        let Some(stat) = stat else {
            return Err(CallError::Answer { asked, answer: "the end of the stream".into() });
        };
        let offset = u64::try_from(stat.offset).unwrap_or(0);
        let digest = target.digest.clone();
        let session =
            Self { namespace: namespace.clone(), asked, digest, len: target.len, requests, answers };
        Ok(Opened::Ours { session, offset })
    }

    /// Appends `data` at `offset`; `false` if the namespace got the blob in the meantime.
    ///
    /// # Errors
    /// The call failed, or containerd took another number of bytes.
    pub(super) async fn write(&mut self, offset: u64, data: Bytes) -> Result<bool, CallError> {
        let after = offset + data.len() as u64;
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: signed(offset),
            data,
            ..WriteContentRequest::default()
        };
        let answer = match self.ask(request, ANSWER_MAX).await {
            Err(error) if error.code() == Some(Code::AlreadyExists) => return Ok(false),
            answer => answer?,
        };
        if answer.offset != signed(after) {
            let answer = format!("offset {} after byte {after}", answer.offset);
            return Err(CallError::Answer { asked: self.asked.clone(), answer });
        }
        Ok(true)
    }

    /// Commits the blob with `labels`; all of its bytes are written, or are in another namespace.
    ///
    /// # Errors
    /// The call failed; with [`is_mismatch`] the ingest is still there, and wrong.
    pub(super) async fn commit(mut self, labels: &BTreeMap<String, String>) -> Result<Committed, CallError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: signed(self.len),
            expected: self.digest.to_string(),
            offset: signed(self.len),
            labels: labels.clone().into_iter().collect(),
            ..WriteContentRequest::default()
        };
        match self.ask(request, COMMIT_MAX).await {
            Ok(_) => {
                self.close().await;
                Ok(Committed::Now)
            }
            Err(error) if error.code() == Some(Code::AlreadyExists) => Ok(Committed::Before),
            Err(error) => Err(error),
        }
    }

    /// Gives the lock up and waits until it is free; what was written stays for whoever opens the ref next.
    pub(super) async fn close(self) {
        let Self { requests, mut answers, .. } = self;
        drop(requests);
        let drained = async { while let Ok(Some(_)) = answers.message().await {} };
        // After the limit the stream is reset by dropping it, which ends in the same, a little later.
        let _ = timeout(CLOSE_MAX, drained).await;
    }

    /// Waits until the stream breaks, and says why. It is containerd's turn to speak only after a request, so
    /// that any end is a loss.
    pub(super) async fn broken(&mut self) -> CallError {
        loop {
            match self.answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    let answer = "the end of the stream".into();
                    return CallError::Answer { asked: self.asked.clone(), answer };
                }
                Err(status) => return self.error(status),
            }
        }
    }

    async fn ask(
        &mut self,
        request: WriteContentRequest,
        limit: Duration,
    ) -> Result<WriteContentResponse, CallError> {
        // The queue is closed only when the stream has ended; why it did is among the answers.
        let _ = self.requests.send(request).await;
        let answer = self.namespace.client.within(limit, &self.asked, self.answers.message()).await?;
        answer.ok_or_else(|| CallError::Answer {
            asked: self.asked.clone(),
            answer: "the end of the stream".into(),
        })
    }

    fn error(&self, status: Status) -> CallError {
        CallError::new(self.namespace.client.address(), &self.asked, status)
    }
}

/// Another stream is the lock. (`Unavailable` is also what a busy containerd could say for other reasons;
/// the wording is that of `content/local/locks.go` since 1.0.)
fn is_locked(error: &CallError) -> bool {
    error.code() == Some(Code::Unavailable) && error.words().contains("locked")
}

/// The bytes are not those of the digest, or not as many as stated.
pub(super) fn is_mismatch(error: &CallError) -> bool {
    error.code() == Some(Code::FailedPrecondition)
}

/// Blobs are at most 1 TiB (`oci::document`), far below the sign.
fn signed(len: u64) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}
