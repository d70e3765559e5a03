//! `containerd.services.snapshots.v1`: the snapshotter that containerd dials.
//!
//! Only Prepare may take long, and only while the [`Interceptor`] makes a layer present: containerd calls
//! Commit and Update inside its database's write transaction and Remove under the lock that every Prepare of
//! the node needs. When a client goes away tonic drops the handler wherever it waits; what touches the disk
//! runs on a blocking thread to its end all the same, its hook included.

mod message;
mod status;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use crate::{
    oci::Digest,
    snapshot::{Cursor, Filter, LABEL_SNAPSHOT_REF, SnapshotError, Snapshots},
    wire::containerd::services::snapshots::v1::{self as api, snapshots_server},
};

/// containerd's own limit, both ways. A List message of 100 infos with 4 KiB of labels each is far below.
const MESSAGE_LEN_MAX: usize = 16 << 20;

/// Calls in flight on one connection. containerd has one connection for all its work, and a Remove must
/// never queue behind Prepares that wait: far more than a node starts containers at once.
const STREAMS_MAX: u32 = 4096;

/// How often it is said that containerd knows more than there is: a single pull asks a dozen times.
const MISS_EVERY: Duration = Duration::from_secs(60);

/// Answer of an [`Interceptor`] to a Prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercepted {
    /// Give containerd a snapshot to fill.
    Pass,
    /// A committed snapshot for the target stands on exactly this parent.
    AlreadyExists,
}

/// What wants to know of snapshots before containerd fills them.
#[async_trait]
pub trait Interceptor: Send + Sync + 'static {
    /// Asked before a snapshot with a target is made. May take as long as its budget.
    async fn prepare(&self, request: &Prepare) -> Intercepted;
    /// `key` is gone. Called on a blocking thread inside containerd's locks: must only post an event.
    fn removed(&self, key: &str);
    /// The active snapshot `key` was committed. As [`Self::removed`].
    fn committed(&self, key: &str);
}

/// A Prepare of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// From the key, else from the header; empty if neither says.
    pub namespace: String,
    pub key: String,
    pub parent: String,
    pub labels: HashMap<String, String>,
    pub lease: Option<String>,
    /// The chain ID that the snapshot is for. Only a Prepare that has one is ever intercepted.
    pub target: Option<String>,
}

impl Prepare {
    fn of(request: &api::PrepareSnapshotRequest, metadata: &MetadataMap) -> Self {
        let header = |name| metadata.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (namespace, key) = match split_backend_key(&request.key) {
            Some((namespace, key)) => (namespace.to_owned(), key),
            None => (header("containerd-namespace").unwrap_or_default(), request.key.as_str()),
        };
        Self {
            namespace,
            key: request.key.clone(),
            parent: request.parent.clone(),
            labels: request.labels.clone(),
            lease: header("containerd-lease"),
            target: target(key, &request.labels),
        }
    }
}

/// containerd's metadata store calls snapshots `<namespace>/<sequence>/<key>` here. Debian's containerd 1.6
/// and 1.7 send no namespace header, so the key is what we go by.
fn split_backend_key(key: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = key.split_once('/')?;
    let (sequence, key) = rest.split_once('/')?;
    let numbered = !sequence.is_empty() && sequence.bytes().all(|b| b.is_ascii_digit());
    (numbered && !namespace.is_empty()).then_some((namespace, key))
}

/// The label says it, or containerd's unpacker does in its key: `extract-<time>-<random> <chain ID>`.
fn target(key: &str, labels: &HashMap<String, String>) -> Option<String> {
    if let Some(label) = labels.get(LABEL_SNAPSHOT_REF) {
        return Some(label.clone());
    }
    let (_, chain_id) = key.strip_prefix("extract-")?.rsplit_once(' ')?;
    chain_id.parse::<Digest>().ok().map(|digest| digest.to_string())
}

/// The service, with containerd's message limits.
pub fn service(
    snapshots: Arc<Snapshots>,
    interceptor: Arc<dyn Interceptor>,
) -> snapshots_server::SnapshotsServer<Door> {
    snapshots_server::SnapshotsServer::new(Door { snapshots, interceptor, missed_at: Mutex::default() })
        .max_decoding_message_size(MESSAGE_LEN_MAX)
        .max_encoding_message_size(MESSAGE_LEN_MAX)
}

/// Answers on `listener` until `stop`, then lets the calls in flight end. No keep-alive: containerd pings
/// nobody and a pause of the node must not cost the connection.
pub async fn serve(
    listener: UnixListener,
    service: snapshots_server::SnapshotsServer<Door>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
        .await
}

/// Turns calls into operations on [`Snapshots`], and what went wrong into status codes.
pub struct Door {
    snapshots: Arc<Snapshots>,
    interceptor: Arc<dyn Interceptor>,
    /// When it was last said that containerd knows more than there is.
    missed_at: Mutex<Option<Instant>>,
}

impl Door {
    /// containerd knows a snapshot that we do not.
    fn miss(&self, key: &str, now: Instant) {
        let mut missed_at = self.missed_at.lock();
        if missed_at.is_some_and(|at| now.duration_since(at) < MISS_EVERY) {
            return;
        }
        *missed_at = Some(now);
        tracing::warn!(
            key,
            "containerd knows a snapshot that is not here, as when the folder of snapshots was removed: images with that \
             layer cannot be pulled until containerd has forgotten it, by the removal of every container and image that \
             has it (all of them: `crictl rmp -af && crictl rmi -a`)"
        );
    }

    /// Runs `work` on a blocking thread, to its end even if nobody waits for it any more.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshots, &dyn Interceptor) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, Status> {
        let (snapshots, interceptor) = (self.snapshots.clone(), self.interceptor.clone());
        let done = tokio::task::spawn_blocking(move || work(&snapshots, &*interceptor)).await;
        match done {
            Ok(result) => result.map_err(status::of),
            Err(panicked) => Err(Status::internal(format!("a snapshot operation failed: {panicked}"))),
        }
    }
}

type Infos = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

#[async_trait]
impl snapshots_server::Snapshots for Door {
    type ListStream = Infos;

    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let prepare = Prepare::of(request.get_ref(), request.metadata());
        if let Some(target) = &prepare.target
            && self.interceptor.prepare(&prepare).await == Intercepted::AlreadyExists
        {
            return Err(Status::already_exists(format!("target snapshot `{target}` already exists")));
        }
        let Prepare { key, parent, labels, .. } = prepare;
        let mounts = self.blocking(move |snapshots, _| snapshots.prepare(&key, &parent, &labels)).await?;
        let mounts = mounts.into_iter().map(message::mount).collect();
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.blocking(move |snapshots, _| snapshots.view(&key, &parent, &labels)).await?;
        let mounts = mounts.into_iter().map(message::mount).collect();
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.blocking(move |snapshots, _| snapshots.mounts(&key)).await?;
        let mounts = mounts.into_iter().map(message::mount).collect();
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let api::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let commit = move |snapshots: &Snapshots, interceptor: &dyn Interceptor| {
            snapshots.commit(&name, &key, Some(&parent), &labels)?;
            interceptor.committed(&key);
            Ok(())
        };
        self.blocking(commit).await.map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        let remove = move |snapshots: &Snapshots, interceptor: &dyn Interceptor| {
            let removed = snapshots.remove(&key);
            // A key that never became a snapshot, because its Prepare was cancelled, is gone as well.
            if matches!(removed, Ok(()) | Err(SnapshotError::NotFound { .. })) {
                interceptor.removed(&key);
            }
            removed
        };
        self.blocking(remove).await.map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let stat = {
            let key = key.clone();
            self.blocking(move |snapshots, _| snapshots.stat(&key)).await
        };
        // Of what it does not know itself containerd does not ask.
        if stat.as_ref().is_err_and(|status| status.code() == Code::NotFound) {
            self.miss(&key, Instant::now());
        }
        let info = stat?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(message::info(info)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let api::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info.ok_or_else(|| Status::invalid_argument("an update needs an info"))?;
        let mask = update_mask.unwrap_or_default().paths;
        let update = move |snapshots: &Snapshots, _: &dyn Interceptor| {
            snapshots.update(&info.name, &info.labels, &mask)
        };
        let info = self.blocking(update).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(message::info(info)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filter = Filter::parse(&request.into_inner().filters)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(infos(self.snapshots.clone(), filter)))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.blocking(move |snapshots, _| snapshots.usage(&key)).await?;
        Ok(Response::new(message::usage(usage)))
    }

    async fn cleanup(&self, _request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        self.blocking(|snapshots, _| snapshots.cleanup()).await.map(Response::new)
    }
}

/// A page is read when the client has taken the one before.
fn infos(snapshots: Arc<Snapshots>, filter: Filter) -> Infos {
    let filter = Arc::new(filter);
    let pages = stream::try_unfold(Some(Cursor::default()), move |after| {
        let (snapshots, filter) = (snapshots.clone(), filter.clone());
        async move {
            let Some(after) = after else { return Ok(None) };
            let page = tokio::task::spawn_blocking(move || snapshots.list(&filter, after))
                .await
                .map_err(|panicked| Status::internal(format!("listing snapshots failed: {panicked}")))?
                .map_err(status::of)?;
            Ok(Some((page.infos, page.next)))
        }
    });
    pages
        .try_filter(|infos| std::future::ready(!infos.is_empty()))
        .map_ok(|infos| api::ListSnapshotsResponse { info: infos.into_iter().map(message::info).collect() })
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn prepare(key: &str, labels: &[(&str, &str)], headers: &[(&'static str, &str)]) -> Prepare {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mut metadata = MetadataMap::new();
        for &(name, value) in headers {
            metadata.insert(name, value.parse().unwrap());
        }
        Prepare::of(
            &api::PrepareSnapshotRequest { key: key.to_owned(), labels, ..Default::default() },
            &metadata,
        )
    }

    #[test]
    fn the_key_is_believed_before_the_header() {
        let header = [("containerd-namespace", "other"), ("containerd-lease", "l-1")];
        let asked = prepare("k8s.io/17/box/with/slashes", &[], &header);
        assert_eq!((asked.namespace.as_str(), asked.lease.as_deref()), ("k8s.io", Some("l-1")));
        assert_eq!(prepare("plain", &[], &header).namespace, "other");
        assert_eq!(prepare("a/b/c", &[], &header).namespace, "other", "b is no sequence number");
        assert_eq!(prepare("plain", &[], &[]).namespace, "");
    }

    #[test]
    fn a_target_comes_from_the_label_or_from_an_extract_key() {
        let extract = format!("k8s.io/17/extract-733-Zx {CHAIN}");
        assert_eq!(prepare(&extract, &[], &[]).target.as_deref(), Some(CHAIN));
        assert_eq!(prepare(&format!("extract-1 {CHAIN}"), &[], &[]).target.as_deref(), Some(CHAIN));
        assert_eq!(prepare("k/1/x", &[(LABEL_SNAPSHOT_REF, "r")], &[]).target.as_deref(), Some("r"));
        assert_eq!(prepare("k8s.io/17/extract-733-Zx sha256:short", &[], &[]).target, None);
        assert_eq!(prepare(&format!("k8s.io/17/box {CHAIN}"), &[], &[]).target, None);
    }
}
