//! A registry to pull from, for every client: Docker, Podman, CRI-O, `ctr`, buildkit, and containerd itself.
//!
//! ```text
//! GET /v2/<repository>/manifests/<tag or digest>     ?ns=HOST says which registry is meant, or the name's first word
//!     /v2/<repository>/blobs/<digest>                does (`/v2/registry.example/a/b/…`), or it is `default_upstream`
//!     /v2/<repository>/tags/list, /referrers/<digest>
//!        │
//!        ├─ registries  is it one that the cluster shares? every other is passed on as it is
//!        ├─ gate    may this client have it? the registry says, to the client's own credentials
//!        ├─ tags    what a tag means, for a short while
//!        └─ pulls   manifests and blobs: from here, from the mesh, from the registry once
//! ```
//! The same port is a proxy (`proxy`), for Docker and whoever else knows no mirror for most registries.
//!
//! Invariants: a client's credentials go to its registry and nowhere else, and are gone with the request or the pull
//! they came with. Of a registry that the cluster shares no byte is sent whose piece was not checked, and no blob ends in
//! good order that is not what its digest says, whoever sent it. What a registry refuses is refused in its own words.

mod access;
mod blobs;
mod known;
mod leaf;
mod manifests;
mod metrics;
mod passed;
mod patient;
mod proven;
mod proxy;
mod range;
mod reply;
mod route;
mod tags;
mod visits;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    access::Gate,
    known::Known,
    manifests::Client,
    patient::Patient,
    reply::Reply,
    route::{Asked, Route, What},
    tags::Fresh,
};
pub use self::{
    access::{Access, GRANTED_FOR},
    leaf::{Authority, AuthorityError},
    metrics::Metrics,
    visits::Visits,
};
use crate::{
    origin::{Asker, Origin, Pass},
    pull::{Pulls, Registries},
    store::{Kept, Store},
};

/// Connections at a time: 200 clients with two each. What is on its way to all of them together is bounded in `pull`.
const CONNECTIONS_MAX: usize = 512;
/// A request's head takes no longer once it has begun, and an idle connection is kept for as long.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// Bytes of a request's head: tokens of large registries reach 8 KiB.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// A client that takes nothing of its answer for so long is cut off. One that unpacks while it reads may take a minute
/// for a layer of many small files.
const TAKEN_MAX: Duration = Duration::from_secs(300);
/// After an error of accept (no more descriptors), the listener pauses: asking at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the mirror behaves. Section `[mirror]`.
#[derive(Debug)]
pub struct Settings {
    /// The registry of names without a host.
    pub default_upstream: String,
    /// The registries that the cluster shares, beside that one.
    pub registries: Registries,
    /// That one, and those of them that the operator has written down himself: they may be done without while they are
    /// down.
    pub named: Registries,
    pub access: Access,
    /// How long a tag's meaning counts before the registry is asked again.
    pub tag_ttl: Duration,
    /// For which hosts the proxy opens TLS, and with which CA; without one it opens none.
    pub authority: Option<Authority>,
}

/// What the mirror works with.
#[derive(Clone)]
pub struct Parts {
    pub origin: Origin,
    pub pulls: Pulls,
    pub store: Store,
    pub metrics: Metrics,
    /// Told of what containerd pulls here.
    pub visits: Visits,
}

/// The mirror behind its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Mirror(Arc<Door>);

struct Door {
    parts: Parts,
    settings: Settings,
    gate: Gate,
    tags: Fresh,
    known: Known,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Mirror {
    #[must_use]
    pub fn new(parts: Parts, settings: Settings, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let answered = Kept::start(&parts.store, access::ANSWERED, &tasks, &stop);
        let gate = Gate::new(settings.access, parts.origin.clone(), settings.named.clone(), answered);
        Self(Arc::new(Door {
            gate,
            tags: Fresh::new(settings.tag_ttl),
            known: Known::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            parts,
            settings,
            tasks,
            stop,
        }))
    }

    /// Serves clients on loopback until the daemon stops.
    pub async fn serve_tcp(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.0.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    // A small answer is not to wait for the next one. A socket that refuses this is slower, no more.
                    let _delays = stream.set_nodelay(true);
                    self.welcome(stream, Near(client.ip().to_canonical().is_loopback()));
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Serves clients on a socket until the daemon stops.
    pub async fn serve_unix(self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                () = self.0.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.welcome(stream, Near(false)),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn pause(&self, error: &std::io::Error) {
        tracing::warn!("cannot accept a client of the mirror: {error}");
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = tokio::time::sleep(ACCEPT_PAUSE) => {}
        }
    }

    /// A connection counts until it is closed, also as a tunnel.
    fn welcome(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, near: Near) {
        let Ok(permit) = self.0.connections.clone().try_acquire_owned() else {
            tracing::warn!("closed a client's connection to the mirror: {CONNECTIONS_MAX} are open");
            return;
        };
        let (door, place) = (self.0.clone(), Place(Arc::new(permit)));
        let stream = Patient::with_readers(stream, TAKEN_MAX);
        self.0.tasks.spawn(async move {
            let stop = door.stop.clone();
            let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
                let door = door.clone();
                request.extensions_mut().insert(place.clone());
                request.extensions_mut().insert(near);
                async move { Ok::<_, Infallible>(door.answer(request).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .max_buf_size(BUFFER_LEN_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
                tracing::debug!("a client's connection to the mirror ended: {error}");
            }
        });
    }
}

/// A connection's place among those that may be open.
#[derive(Clone, Debug)]
struct Place(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// Whether a client comes from a loopback address: a process of this machine's own network, which reaches the same
/// without us, or a relay that runs in it. A container with the mirror's socket does not.
#[derive(Clone, Copy, Debug)]
struct Near(bool);

impl Door {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        if proxy::is_proxied(&request) {
            return self.proxied(request).await;
        }
        let uri = request.uri();
        let route = route::route(uri.path(), uri.query(), &self.settings.default_upstream);
        let mut reply = match route {
            _ if is_flotilla(request.headers()) => {
                let message = "a mirror was asked by a mirror; its hosts.toml leads back to itself";
                reply::error(StatusCode::LOOP_DETECTED, "UNSUPPORTED", message)
            }
            _ if !matches!(*request.method(), Method::GET | Method::HEAD) => reply::unsupported(),
            Ok(Route::Base) => reply::document("{}", "application/json"),
            Ok(Route::Of(asked)) if !self.is_shared(&asked.repository.host).await => {
                return self.pass(&asked, request).await;
            }
            Ok(Route::Of(asked)) => {
                let reply = self.of(&asked, &client(&request)).await;
                self.note(&asked, request.headers(), &reply);
                reply
            }
            Err(why) => reply::misrouted(&why),
        };
        reply::sign(&mut reply);
        reply
    }

    async fn of(&self, asked: &Asked, client: &Client) -> Reply {
        match &asked.what {
            What::Tag(tag) => self.tag(asked, tag, client).await,
            What::Manifest(digest) => self.manifest(asked, digest, client).await,
            What::Blob(digest) => self.blob(asked, digest, client).await,
            What::Referrers(digest) => self.list(asked, format!("referrers/{digest}"), client).await,
            What::Tags => self.list(asked, "tags/list".to_owned(), client).await,
        }
    }

    /// Counts the request; what containerd gets here it will get here again.
    fn note(&self, asked: &Asked, headers: &HeaderMap, reply: &Reply) {
        let what = match &asked.what {
            What::Tag(_) => "tag",
            What::Manifest(_) => "manifest",
            What::Blob(_) => "blob",
            What::Referrers(_) => "referrers",
            What::Tags => "tags",
        };
        self.parts.metrics.count(what, reply.status());
        let of_containerd = asked.by_namespace && agent(headers).starts_with("containerd/");
        if of_containerd && reply.status().is_success() {
            self.parts.visits.note(&asked.repository, Instant::now());
        }
        tracing::debug!(repository = %asked.repository, what, status = reply.status().as_u16(), "mirror");
    }
}

fn agent(headers: &HeaderMap) -> &str {
    headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default()
}

/// A daemon that takes a mirror for a registry would ask in circles.
fn is_flotilla(headers: &HeaderMap) -> bool {
    agent(headers).starts_with("flotilla/")
}

fn client(request: &Request<Incoming>) -> Client {
    let headers = request.headers();
    let accepted: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
    Client {
        asker: Asker::Client(headers.get(header::AUTHORIZATION).cloned().map(Pass::new)),
        head: request.method() == Method::HEAD,
        accept: accepted.join(", "),
        // A client that has a part of other bytes must get all of these.
        range: range.filter(|_| !headers.contains_key(header::IF_RANGE)),
    }
}
