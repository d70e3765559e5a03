//! The proxy, on the mirror's port: for clients that know no mirrors of other registries than one.
//!
//! ```text
//! CONNECT host:443 ── host is listed ── TLS by a leaf of the operator's CA ── a pull? ── as any pull of the mirror's
//!        │                                                                    └── else handed to the registry as it is
//!        └──────────── any other host ── a blind tunnel
//! GET http://host/… ── the same, without TLS
//! ```
//! Without listed hosts it is no proxy at all. It leads to no address of this machine or of its link, and clients that
//! come from elsewhere than its loopback address to ports of the web alone: a container that reaches the mirror is not to
//! reach the node through it, nor what is not the web. Hosts that the operator has named, in `proxy_hosts` or
//! `plain_http`, may be anywhere.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
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
    Authority, BUFFER_LEN_MAX, Door, HEAD_MAX, Near, Place, client, is_flotilla,
    patient::Patient,
    reply::{self, BrokenOff, Outgoing, Reply, Sort},
    route::{self, Asked, Route, What},
};
use crate::{oci::Repository, origin::strip_connection, pull::TagKey};

/// How long another host may take to accept a connection; what registries get as well.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a client may take for its side of TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// A tunnel in which nothing moves is closed after as long as a registry may take to store what was pushed, and more.
const IDLE_MAX: Duration = Duration::from_secs(900);

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
        let Some(authority) = &self.settings.authority else {
            let message = "this mirror is no proxy: its mirror.proxy_hosts is empty";
            return reply::error(StatusCode::FORBIDDEN, "DENIED", message);
        };
        let near = request.extensions().get::<Near>().is_some_and(|near| near.0);
        if !near && target.port != target.default_port && !self.is_named(authority, &target) {
            let message =
                "from here the proxy leads to ports 80 and 443, and to what mirror.proxy_hosts names";
            return reply::error(StatusCode::FORBIDDEN, "DENIED", message);
        }
        if !connect {
            return self.plain(&target, request).await;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let place = request.extensions().get::<Place>().cloned();
        if !authority.opens(&target.host, target.port) {
            return self.tunnel(&target, upgrade, place).await;
        }
        match authority.leaf(&target.host, SystemTime::now()) {
            Ok(leaf) => {
                let (door, acceptor) = (self.clone(), TlsAcceptor::from(leaf));
                let (stop, registry) = (self.stop.clone(), target.registry());
                self.tasks.spawn(async move {
                    let _place = place;
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
                if let Some((repository, tag)) = changed(registry, &request) {
                    self.tags.changed(&repository, &tag);
                    self.parts.pulls.tags().forget(&TagKey::of(&repository, &tag));
                }
                let request = request.map(|body| body.boxed_unsync());
                match self.parts.origin.forward(registry, request).await {
                    Ok(answer) => handed_on(answer),
                    Err(error) => reply::refused(Sort::Manifest, &error),
                }
            }
        }
    }

    async fn tunnel(&self, target: &Target, upgrade: OnUpgrade, place: Option<Place>) -> Reply {
        let mut there = match self.dial(target).await {
            Ok(there) => Patient::with_idlers(there, IDLE_MAX),
            Err(why) => return reply::error(StatusCode::BAD_GATEWAY, "UNAVAILABLE", &why),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _place = place;
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

    /// Whether the operator knows this host, wherever it is.
    fn is_named(&self, authority: &Authority, target: &Target) -> bool {
        authority.opens(&target.host, target.port) || self.parts.origin.is_plain(&target.registry())
    }

    async fn dial(&self, target: &Target) -> Result<TcpStream, String> {
        let Target { host, port, .. } = target;
        let named = self.settings.authority.as_ref().is_some_and(|known| self.is_named(known, target));
        let dialing = async {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
            // The addresses and not the name: whoever keeps the name may let it mean anything.
            let all: Vec<SocketAddr> = found.filter(|found| named || !is_near(found.ip())).collect();
            if all.is_empty() {
                return Err(std::io::Error::other("it is this machine or its link"));
            }
            TcpStream::connect(&all[..]).await
        };
        let dialed = tokio::time::timeout(CONNECT_MAX, dialing).await;
        let stream = dialed.map_err(|_| format!("{host}:{port} does not answer"))?;
        stream.map_err(|error| format!("cannot connect to {host}:{port}: {error}"))
    }
}

/// What of `registry` a request pulls, if it does.
fn pulled<B>(registry: &str, request: &Request<B>) -> Option<Asked> {
    matches!(*request.method(), Method::GET | Method::HEAD).then(|| named(registry, request)).flatten()
}

/// The tag of `registry` that a request sets or deletes.
fn changed<B>(registry: &str, request: &Request<B>) -> Option<(Repository, String)> {
    let asked =
        matches!(*request.method(), Method::PUT | Method::DELETE).then(|| named(registry, request))??;
    if let What::Tag(tag) = asked.what { Some((asked.repository, tag)) } else { None }
}

fn named<B>(registry: &str, request: &Request<B>) -> Option<Asked> {
    let namespace = url::form_urlencoded::Serializer::new(String::new()).append_pair("ns", registry).finish();
    let query =
        request.uri().query().map_or_else(|| namespace.clone(), |query| format!("{query}&{namespace}"));
    match route::route(request.uri().path(), Some(&query), registry) {
        Ok(Route::Of(asked)) => Some(asked),
        Ok(Route::Base) | Err(_) => None,
    }
}

/// Whether an address is this machine's own, or one that means something on its link alone.
fn is_near(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let special = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
        // The cloud's metadata under its IPv6 name, which is not of the link.
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local() || ip == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    };
    // What a socket can be bound to is ours.
    special
        || ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || UdpSocket::bind((ip, 0)).is_ok()
}

pub(super) fn handed_on(mut answer: Response<Incoming>) -> Reply {
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

    #[test]
    fn a_push_of_a_tag_is_noticed() {
        let request = |method, path: &str| Request::builder().method(method).uri(path).body(()).unwrap();
        let of =
            |method, path| changed("r.local", &request(method, path)).map(|(of, tag)| format!("{of}:{tag}"));
        assert_eq!(of(Method::PUT, "/v2/a/b/manifests/v1").as_deref(), Some("r.local/a/b:v1"));
        assert_eq!(of(Method::GET, "/v2/a/b/manifests/v1"), None);
        assert_eq!(of(Method::PUT, "/v2/a/b/blobs/uploads/1"), None);
    }

    #[test]
    fn the_machine_and_its_link_are_near() {
        for near in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "::ffff:127.0.0.1",
            "224.0.0.1",
        ] {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        assert!(!is_near("192.0.2.1".parse().unwrap()) && !is_near("2001:db8::1".parse().unwrap()));
    }
}
