//! Upstream registries: an OCI distribution client for reading.
//!
//! ```text
//!   Origin ── book ──────── hosts_dir, own doors ──> endpoints: mirror, mirror, registry
//!     │
//!     ├─ document, locate, body, passed: what is asked, and what is believed of the answer
//!     │     └─ rounds: whom next, and when        (pure)
//!     │     └─ framing: which bytes these are      (pure)
//!     └─ exchange: auth ──> redirect (pure) ──> transport ──> hyper, rustls
//! ```
//! Invariants: TLS is always verified. Plain HTTP goes only to hosts that the settings or hosts.toml name.
//! Credentials and headers of an endpoint go to this endpoint and its token realm, and into no log. No body is
//! read beyond its limit, no wait is without a deadline. The client starts no tasks of its own.

mod asker;
mod auth;
mod body;
mod document;
mod endpoint;
mod error;
mod exchange;
mod forward;
mod framing;
mod gate;
mod hosts;
mod leave;
mod locate;
mod name;
mod passed;
mod rate;
mod redirect;
mod rounds;
mod tls;
mod transport;

use std::{net::SocketAddr, ops::Range, path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::oci::{Digest, MAX_DOCUMENT_LEN, Reference, Repository};

pub use asker::{Asker, Lead, Lent, Pass};
pub use auth::{Credential, ProviderError, ProviderFiles};
pub use body::Body;
pub use document::Document;
pub use error::{Actual, Cause, Demand, NewError, OriginError, Said, known_reason};
pub use forward::strip_connection;
pub use leave::Leave;
pub use locate::{Kind, Located, Sought};
pub use passed::{Passed, Told};
pub use redirect::RedirectError;
pub use rounds::Patience;
pub use tls::Outgoing;

use auth::Auth;
use document::Wanted;
use endpoint::Book;
use exchange::Exchange;
use gate::Gates;
use name::PlainHttp;
use rate::Rate;
use tls::Tls;

/// How registries are reached. Section `[registry]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories of hosts.toml folders; the first that knows a host wins.
    pub hosts_dir: Vec<PathBuf>,
    /// Docker's config.json. `None`: every registry is asked without credentials.
    pub docker_config: Option<PathBuf>,
    /// kubelet's credential providers, for what Docker's config does not know.
    pub credential_providers: Option<ProviderFiles>,
    /// Hosts that may be asked without TLS: `host` (every port) or `host:port`.
    pub plain_http: Vec<String>,
    /// Bytes a second from all registries together; `None` and 0 set no limit.
    pub origin_rate: Option<u64>,
    /// Blobs read at once from one host: a [`Body`] that is not read on keeps its place until it is dropped.
    pub origin_concurrency: usize,
    /// Where this node answers registry requests itself: never asked.
    pub own_doors: Vec<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // containerd's own default since 2.2.
            hosts_dir: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            docker_config: None,
            credential_providers: None,
            plain_http: Vec::new(),
            origin_rate: None,
            // Twice what Docker and kubelet take at once by default (3 and 5): runs of several layers interleave.
            origin_concurrency: 8,
            own_doors: Vec::new(),
        }
    }
}

/// Reads from registries. Cheap to clone.
#[derive(Clone)]
pub struct Origin {
    shared: Arc<Shared>,
}

/// What all requests share.
struct Shared {
    book: Arc<Book>,
    exchange: Exchange,
    gates: Gates,
    memory: locate::Memory,
    rate: Rate,
}

impl Shared {
    /// Counts bytes that have arrived; the moment before which no more should be read.
    fn take(&self, bytes: usize) -> Option<Instant> {
        self.rate.take(bytes)
    }

    async fn account(&self, bytes: usize) {
        if let Some(paid_at) = self.take(bytes) {
            self.rate.paid(paid_at).await;
        }
    }
}

impl Origin {
    /// # Errors
    /// Settings that name no host, credential providers that cannot be used, or no usable TLS.
    pub fn new(settings: Settings) -> Result<Self, NewError> {
        Self::with_patience(settings, Patience::default())
    }

    /// With other deadlines than the default.
    ///
    /// # Errors
    /// As [`Origin::new`].
    pub fn with_patience(settings: Settings, patience: Patience) -> Result<Self, NewError> {
        let plain = PlainHttp::new(&settings.plain_http).map_err(NewError::PlainHttp)?;
        let tls = Tls::new(patience.connect).map_err(NewError::Tls)?;
        let providers = settings.credential_providers.as_ref();
        let auth = Auth::new(settings.docker_config, providers, patience.clone());
        let auth = auth.map_err(NewError::CredentialProviders)?;
        let shared = Shared {
            book: Arc::new(Book::new(settings.hosts_dir, plain, settings.own_doors, tls)),
            exchange: Exchange::new(auth, patience),
            gates: Gates::new(settings.origin_concurrency),
            memory: locate::Memory::default(),
            rate: Rate::new(settings.origin_rate),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Bytes a second from all registries together, from now on; `None` and 0 set no limit.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.shared.rate.set(bytes_per_second);
    }

    /// The manifest or index that `reference` names, verified: against its digest where it has one, else against
    /// the digest that the registry states.
    ///
    /// # Errors
    /// None of the registry's endpoints gave it.
    pub async fn resolve(&self, reference: &Reference) -> Result<Document, OriginError> {
        let path = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => format!("manifests/{digest}"),
            (None, Some(tag)) => format!("manifests/{tag}"),
            (None, None) => "manifests/latest".to_owned(),
        };
        let accept = document::MANIFEST_TYPES.join(", ");
        let digest = reference.digest.as_ref();
        let wanted =
            Wanted { repository: &reference.repository, path: &path, accept: &accept, digest, len: None };
        document::fetch(&self.shared, &wanted).await
    }

    /// The manifest or index `digest`, verified.
    ///
    /// # Errors
    /// None of the registry's endpoints gave it.
    pub async fn document(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_types: &[&str],
    ) -> Result<Bytes, OriginError> {
        let media_types = if media_types.is_empty() { document::MANIFEST_TYPES } else { media_types };
        let (path, accept) = (format!("manifests/{digest}"), media_types.join(", "));
        let wanted = Wanted { repository, path: &path, accept: &accept, digest: Some(digest), len: None };
        document::fetch(&self.shared, &wanted).await.map(|document| document.bytes)
    }

    /// A blob of at most 8 MiB, such as an image's config, whole and verified.
    ///
    /// # Errors
    /// None of the registry's endpoints gave it, or it is larger.
    pub async fn small_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        len: u64,
    ) -> Result<Bytes, OriginError> {
        let path = format!("blobs/{digest}");
        if len > MAX_DOCUMENT_LEN as u64 {
            return Err(OriginError::TooLarge {
                at: format!("{repository}@{digest}"),
                limit: MAX_DOCUMENT_LEN,
            });
        }
        let wanted = Wanted { repository, path: &path, accept: "*/*", digest: Some(digest), len: Some(len) };
        document::fetch(&self.shared, &wanted).await.map(|document| document.bytes)
    }

    /// Which of the `wanted` repositories has the blob, with the length that its descriptor states.
    ///
    /// # Errors
    /// [`OriginError::NoOrigin`], with the most telling reason as its source.
    pub async fn locate(
        &self,
        wanted: &[Repository],
        digest: &Digest,
        len: u64,
    ) -> Result<Located, OriginError> {
        let sought = Sought { kind: Kind::Blob, digest: digest.clone(), len };
        let lead = |wanted: &Repository| Lead { repository: wanted.clone(), asker: Asker::Node };
        self.follow(&wanted.iter().map(lead).collect::<Vec<_>>(), &sought).await
    }

    /// As [`Origin::locate`], for blobs and manifests, in anybody's name.
    ///
    /// # Errors
    /// As [`Origin::locate`].
    pub async fn follow(&self, leads: &[Lead], sought: &Sought) -> Result<Located, OriginError> {
        locate::locate(&self.shared, leads, sought).await
    }

    /// Whether `asker` may have a blob or manifest of `repository`: its length, as the registry states it. Every
    /// endpoint is asked once.
    ///
    /// # Errors
    /// None lets it be had.
    pub async fn reach(
        &self,
        repository: &Repository,
        (kind, digest): (Kind, &Digest),
        asker: &Asker,
    ) -> Result<u64, OriginError> {
        let sought = Sought { kind, digest: digest.clone(), len: 0 };
        Box::pin(locate::reach(&self.shared, repository, &sought, asker)).await
    }

    /// Passes a client's question on to the registry of its repository.
    ///
    /// # Errors
    /// No endpoint answered it, or what they answered is a refusal.
    pub async fn pass_on(&self, question: &Passed) -> Result<Told, OriginError> {
        Box::pin(passed::ask(&self.shared, question)).await
    }

    /// Hands a client's request to the registry `host` itself, as it is.
    ///
    /// # Errors
    /// It cannot be reached, or does not answer.
    pub async fn forward(
        &self,
        host: &str,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, OriginError> {
        Box::pin(forward::forward(&self.shared, host, request)).await
    }

    /// As [`Origin::forward`], for a client that has asked for it at another address: redirects are spelt out.
    ///
    /// # Errors
    /// As [`Origin::forward`].
    pub async fn forward_from_elsewhere(
        &self,
        host: &str,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, OriginError> {
        Box::pin(forward::forward_from_elsewhere(&self.shared, host, request)).await
    }

    /// Whether `host` is one of those that may be asked without TLS: a registry that the operator knows.
    #[must_use]
    pub fn is_plain(&self, host: &str) -> bool {
        self.shared.book.is_plain(host)
    }

    /// Whether somebody has written this very host into our settings or into `hosts_dir`.
    pub async fn is_named(&self, host: &str) -> bool {
        self.is_plain(host) || self.is_configured(host).await
    }

    /// Whether somebody has written this very host, with this port, into our settings or into `hosts_dir`.
    pub async fn is_written(&self, host: &str) -> bool {
        self.shared.book.lists_plain(host) || self.is_configured(host).await
    }

    /// This node's own credentials for a registry, to be shown to this node's own containerd and nobody else.
    pub async fn login(&self, repository: &Repository) -> Option<Credential> {
        let endpoints = self.shared.book.endpoints(&repository.host).await.ok()?;
        let registry = endpoints.iter().find(|endpoint| endpoint.is_registry)?;
        self.shared.exchange.auth.login(registry, &repository.path).await
    }

    /// Whether a folder of `hosts_dir` is about this very host.
    async fn is_configured(&self, host: &str) -> bool {
        self.shared.book.has_folder(host).await
    }

    /// Reads `range` of a blob, by one GET as long as the connection holds.
    ///
    /// # Errors
    /// No endpoint answered with these bytes of a blob of this length.
    pub async fn read(&self, at: &Located, range: Range<u64>) -> Result<Body, OriginError> {
        Box::pin(Body::open(self.shared.clone(), at.clone(), range, None)).await
    }

    /// As [`Origin::read`], with leave for each connection. What is read without is read beside the node's limit on
    /// reads: as one of its short questions.
    ///
    /// # Errors
    /// As [`Origin::read`].
    pub async fn read_with(
        &self,
        at: &Located,
        range: Range<u64>,
        leave: Arc<dyn Leave>,
    ) -> Result<Body, OriginError> {
        Box::pin(Body::open(self.shared.clone(), at.clone(), range, Some(leave))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: &T) {}

    /// Callers run these on tasks of their own.
    #[tokio::test]
    async fn questions_may_move_between_threads() {
        let origin = Origin::new(Settings { hosts_dir: vec![], ..Settings::default() }).unwrap();
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let repository: Repository = "r.local/a".parse().unwrap();
        is_send(&origin.locate(&[], &digest, 0));
        is_send(&origin.document(&repository, &digest, &[]));
        is_send(&origin.small_blob(&repository, &digest, 0));
        let endpoints = origin.shared.book.endpoints("r.local").await.unwrap();
        let lead = Lead { repository: repository.clone(), asker: Asker::Node };
        let at = Located { repository, kind: Kind::Blob, digest, len: 0, lead, endpoints };
        let mut body = origin.read(&at, 0..0).await.unwrap();
        is_send(&origin.read(&at, 0..0));
        is_send(&body.next());
        assert!(body.next().await.is_none(), "an empty blob needs no question");
    }

    #[tokio::test]
    async fn a_queue_of_our_own_is_no_outage() {
        let settings = Settings { hosts_dir: vec![], origin_concurrency: 1, ..Settings::default() };
        let patience = Patience { answer: std::time::Duration::from_millis(50), ..Patience::default() };
        let origin = Origin::with_patience(settings, patience).unwrap();
        let endpoints = origin.shared.book.endpoints("r.local").await.unwrap();
        let _taken = origin.shared.gates.question(&endpoints[0]).await;
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let repository: Repository = "r.local/a".parse().unwrap();
        let asked = origin.reach(&repository, (Kind::Blob, &digest), &Asker::Client(None)).await;
        let error = asked.unwrap_err();
        assert!(error.is_busy() && !error.is_outage(), "{error}");
    }

    #[test]
    fn a_setting_that_names_no_host_is_quoted() {
        let settings = Settings { plain_http: vec!["http://r.local".into()], ..Settings::default() };
        let error = Origin::new(settings).err().expect("an address is no host");
        assert!(error.to_string().contains("`http://r.local` in registry.plain_http"), "{error}");
    }
}
