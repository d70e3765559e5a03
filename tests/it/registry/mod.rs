//! A registry for tests: real HTTP on a real socket, content in memory or on disk, faults that can be switched on
//! and off while it runs, and a record of everything that it was asked and that it sent.
//!
//! ```ignore
//! let registry = Registry::start().await.with(Fault::IgnoreRange);
//! let digest = registry.put_blob("team/app", b"layer");
//! ...
//! assert_eq!(registry.body_bytes(Kind::Blob), 5);
//! ```
//! It stops when the last handle is dropped.

#![expect(clippy::wildcard_enum_match_arm, reason = "each fault is looked for alone, among many")]

mod body;
mod content;
pub(crate) mod faults;
mod record;
mod serve;

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use flotilla::oci::Digest;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use content::Content;
pub(crate) use faults::Fault;
use faults::Faults;
use record::Record;
pub(crate) use record::{Kind, Seen};

/// A running registry. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Registry {
    inner: Arc<Inner>,
    /// Shared by the handles, not by the server's tasks: the last handle stops it.
    _stop: Arc<tokio_util::sync::DropGuard>,
}

/// What the server's tasks share.
struct Inner {
    address: SocketAddr,
    scheme: &'static str,
    content: Arc<Mutex<Content>>,
    faults: Mutex<Faults>,
    record: Record,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Registry {
    /// Plain HTTP on a free port of the loopback interface.
    pub(crate) async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback"), None)
    }

    /// The content of `other` behind another port: an object store that it redirects to.
    pub(crate) async fn beside(other: &Self) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        Self::launch(listener, None, other.inner.content.clone())
    }

    /// On a listener of the caller's, over TLS if a configuration is given.
    pub(crate) fn on(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self::launch(listener, tls, Arc::default())
    }

    fn launch(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        content: Arc<Mutex<Content>>,
    ) -> Self {
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            address: listener.local_addr().expect("a bound listener has an address"),
            scheme: if tls.is_some() { "https" } else { "http" },
            content,
            faults: Mutex::default(),
            record: Record::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        inner.tasks.spawn(serve::run(listener, tls.map(TlsAcceptor::from), inner.clone()));
        Self { inner, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Switches a fault on.
    #[must_use]
    pub(crate) fn with(self, fault: Fault) -> Self {
        self.switch_on(fault);
        self
    }

    /// Switches a fault on while the registry runs.
    pub(crate) fn switch_on(&self, fault: Fault) {
        self.inner.faults.lock().switch_on(fault);
    }

    /// Switches every fault off.
    pub(crate) fn heal(&self) {
        *self.inner.faults.lock() = Faults::default();
    }

    /// Makes every token handed out so far worthless.
    pub(crate) fn revoke_tokens(&self) {
        self.inner.faults.lock().revoke_tokens();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// As it stands in an image reference: `127.0.0.1:40123`.
    pub(crate) fn host(&self) -> String {
        self.inner.address.to_string()
    }

    /// `http://127.0.0.1:40123`.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.inner.scheme, self.inner.address)
    }

    pub(crate) fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        self.inner.content.lock().put_blob(repository, bytes.into())
    }

    /// A blob that stays on disk; gives its digest and length.
    pub(crate) fn put_file(&self, repository: &str, path: &Path) -> std::io::Result<(Digest, u64)> {
        let file = content::read_file(path)?;
        Ok(self.inner.content.lock().put_file(repository, path, file))
    }

    /// A manifest or index, under a tag too if one is given.
    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        self.inner.content.lock().put_manifest(repository, tag, media_type, bytes.into())
    }

    /// Takes a tag away.
    pub(crate) fn untag(&self, repository: &str, tag: &str) {
        self.inner.content.lock().untag(repository, tag);
    }

    /// Requests of one kind.
    pub(crate) fn requests(&self, kind: Kind) -> usize {
        self.inner.record.all().iter().filter(|seen| seen.kind == kind).count()
    }

    /// Bytes of bodies of one kind that were handed to the network.
    pub(crate) fn body_bytes(&self, kind: Kind) -> u64 {
        self.inner.record.all().iter().filter(|seen| seen.kind == kind).map(|seen| seen.body_bytes()).sum()
    }

    /// Bytes of bodies sent for one path.
    pub(crate) fn body_bytes_of(&self, path: &str) -> u64 {
        self.inner.record.all().iter().filter(|seen| seen.path == path).map(|seen| seen.body_bytes()).sum()
    }

    /// Everything asked so far, in order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.record.all()
    }
}
