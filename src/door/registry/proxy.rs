//! The proxy, on the mirror's port: for clients that know no mirrors of other registries than one.
//!
//! ```text
//! CONNECT host:443 ── host is listed ── TLS by a leaf of the operator's CA ── a pull? ── as any pull of the mirror's
//!        │                                                                    └── else handed to the registry as it is
//!        └──────────── any other host ── a blind tunnel
//! GET http://host/… ── the same, without TLS
//! ```

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::copy_bidirectional, net::TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{
    BUFFER_LEN_MAX, Door, HEAD_MAX, client, is_flotilla,
    reply::{self, BrokenOff, Outgoing, Reply, Sort},
    route::{self, Asked, Route},
};
use crate::origin::strip_connection;

/// How long another host may take to accept a connection; what registries get as well.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a client may take for its side of TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Where a request is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    /// What the scheme stands for.
    default_port: u16,
}

impl Target {
    fn of(uri: &Uri, default_port: u16) -> Option<Self> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(default_port);
        (!host.is_empty()).then_some(Self { host, port, default_port })
    }

    /// As an image reference names the registry.
    fn registry(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.default_port { host } else { format!("{host}:{}", self.port) }
    }
}

/// Whether a request is for a proxy, not for the mirror.
pub(super) fn is_proxied(request: &Request<Incoming>) -> bool {
    request.method() == Method::CONNECT || request.uri().scheme().is_some()
}

impl Door {
    pub(super) async fn proxied(self: &Arc<Self>, mut request: Request<Incoming>) -> Reply {
        let connect = request.method() == Method::CONNECT;
        let Some(target) = Target::of(request.uri(), if connect { 443 } else { 80 }) else {
            return reply::error(StatusCode::BAD_REQUEST, "UNSUPPORTED", "this names no host");
        };
        if !connect {
            return self.plain(&target, request).await;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let authority = self.settings.authority.as_ref();
        let Some(authority) = authority.filter(|authority| authority.opens(&target.host, target.port)) else {
            return self.tunnel(&target, upgrade).await;
        };
        match authority.leaf(&target.host, SystemTime::now()) {
            Ok(leaf) => {
                let (door, acceptor) = (self.clone(), TlsAcceptor::from(leaf));
                let (stop, registry) = (self.stop.clone(), target.registry());
                self.tasks.spawn(async move {
                    stop.run_until_cancelled(door.opened(upgrade, acceptor, registry)).await;
                });
                Response::new(reply::full(Bytes::new()))
            }
            Err(error) => {
                let message = crate::pull::chain_of(&error);
                tracing::warn!("{message}");
                reply::error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &message)
            }
        }
    }

    /// Speaks HTTP with a client that takes us for `registry`.
    async fn opened(self: Arc<Self>, upgrade: OnUpgrade, acceptor: TlsAcceptor, registry: String) {
        let accepting = async {
            let upgraded = upgrade.await.map_err(|error| error.to_string())?;
            acceptor.accept(TokioIo::new(upgraded)).await.map_err(|error| error.to_string())
        };
        let accepted = tokio::time::timeout(HANDSHAKE_MAX, accepting).await;
        let stream = match accepted.unwrap_or_else(|_| Err("it takes too long".to_owned())) {
            Ok(stream) => stream,
            Err(why) => return tracing::info!(registry, "no TLS with a client of the proxy: {why}"),
        };
        let service = hyper::service::service_fn(move |request| {
            let (door, registry) = (self.clone(), registry.clone());
            async move { Ok::<_, std::convert::Infallible>(door.as_registry(&registry, request).await) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(BUFFER_LEN_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = serving.await {
            tracing::debug!("a client's connection through the proxy ended: {error}");
        }
    }

    /// Pulls are the mirror's; everything else is between the client and its registry.
    async fn as_registry(&self, registry: &str, request: Request<Incoming>) -> Reply {
        match pulled(registry, &request) {
            Some(asked) => {
                let reply = self.of(&asked, &client(&request)).await;
                self.note(&asked, request.headers(), &reply);
                reply
            }
            None => {
                let request = request.map(|body| body.boxed_unsync());
                match self.parts.origin.forward(registry, request).await {
                    Ok(answer) => handed_on(answer),
                    Err(error) => reply::refused(Sort::Manifest, &error),
                }
            }
        }
    }

    async fn tunnel(&self, target: &Target, upgrade: OnUpgrade) -> Reply {
        let mut there = match self.dial(target).await {
            Ok(there) => there,
            Err(why) => return reply::error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &why),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let carrying = async {
                let mut here = TokioIo::new(upgrade.await?);
                // Either side ends it as it likes.
                let _ended = copy_bidirectional(&mut here, &mut there).await;
                Ok::<_, hyper::Error>(())
            };
            stop.run_until_cancelled(carrying).await
        });
        Response::new(reply::full(Bytes::new()))
    }

    async fn plain(&self, target: &Target, request: Request<Incoming>) -> Reply {
        let listed = self.settings.authority.as_ref().is_some_and(|a| a.opens(&target.host, target.port));
        if listed && !is_flotilla(request.headers()) {
            return self.as_registry(&target.registry(), request).await;
        }
        match self.ask_plain(target, request).await {
            Ok(answer) => handed_on(answer),
            Err(why) => reply::error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &why),
        }
    }

    async fn ask_plain(
        &self,
        target: &Target,
        request: Request<Incoming>,
    ) -> Result<Response<Incoming>, String> {
        let stream = TokioIo::new(self.dial(target).await?);
        let handshake = hyper::client::conn::http1::handshake(stream).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(connection).await });
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        parts.uri = path.parse().map_err(|_| "no path to ask for".to_owned())?;
        strip_connection(&mut parts.headers);
        let host = target.registry().parse().map_err(|_| "no host to ask".to_owned())?;
        parts.headers.insert(header::HOST, host);
        sender.send_request(Request::from_parts(parts, body)).await.map_err(|error| error.to_string())
    }

    async fn dial(&self, target: &Target) -> Result<TcpStream, String> {
        let Target { host, port, .. } = target;
        let dialing = async {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
            let all: Vec<SocketAddr> = found.collect();
            TcpStream::connect(&all[..]).await
        };
        let dialed = tokio::time::timeout(CONNECT_MAX, dialing).await;
        let stream = dialed.map_err(|_| format!("{host}:{port} does not answer"))?;
        stream.map_err(|error| format!("cannot connect to {host}:{port}: {error}"))
    }
}

/// What of `registry` a request pulls, if it does.
fn pulled(registry: &str, request: &Request<Incoming>) -> Option<Asked> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let namespace = url::form_urlencoded::Serializer::new(String::new()).append_pair("ns", registry).finish();
    let query =
        request.uri().query().map_or_else(|| namespace.clone(), |query| format!("{query}&{namespace}"));
    match route::route(request.uri().path(), Some(&query), registry) {
        Ok(Route::Of(asked)) => Some(asked),
        Ok(Route::Base) | Err(_) => None,
    }
}

fn handed_on(mut answer: Response<Incoming>) -> Reply {
    strip_connection(answer.headers_mut());
    answer.map(|body| -> Outgoing { body.map_err(BrokenOff::Registry).boxed_unsync() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_image_references_name_them() {
        let of = |uri: &str, port| Target::of(&uri.parse().unwrap(), port).map(|target| target.registry());
        assert_eq!(of("r.local:443", 443).as_deref(), Some("r.local"));
        assert_eq!(of("r.local:5000", 443).as_deref(), Some("r.local:5000"));
        assert_eq!(of("http://r.local/v2/", 80).as_deref(), Some("r.local"));
        assert_eq!(of("[::1]:5000", 443).as_deref(), Some("[::1]:5000"));
        assert_eq!(of("/v2/", 443), None);
        assert_eq!(of("http://user:secret@r.local/", 80), None);
    }
}
