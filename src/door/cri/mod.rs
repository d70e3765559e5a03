//! kubelet's image service, passed through to containerd: for nodes whose pods have pull secrets, which reach containerd by
//! CRI alone and us not at all.
//!
//! ```text
//!   kubelet --image-service-endpoint ─▶ cri.sock ── PullImage: read; the image's layers are started in its name ──┐
//!                                          └─────── every call, byte by byte, answers and trailers too ────────▶ containerd
//! ```
//! Nothing is encoded anew: what the proxy does not understand it passes on as it came. Credentials are held as long as
//! the pull that they came with. kubelet has no second image service: while this daemon is down it lists and pulls no
//! images, which is why the proxy is off unless it is asked for.

mod pull;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, Version, header};
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Mutex, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    preheat::Preheats,
    pull::{Pull, chain_of},
};

/// Connections at a time: kubelet has one or two, crictl one for each of its calls.
const CONNECTIONS_MAX: usize = 64;
/// Calls at a time on one connection; kubelet pulls a handful of images at once.
const STREAMS_MAX: u32 = 256;
/// Largest PullImage read, containerd's own limit of a message.
const REQUEST_LEN_MAX: usize = 16 << 20;
/// How long a PullImage waits for its layers to be started. Token and manifest take a few round trips; a registry that
/// takes longer delays containerd no further, and the start goes on beside its pull.
const AHEAD_MAX: Duration = Duration::from_secs(2);
/// Connecting to a local socket either works at once or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A silent connection of a client is asked this often whether it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// After an error of accept (no more descriptors), the listener pauses: asking at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The service that is passed through, by the names of its versions.
const SERVICES: [&str; 2] = ["/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/"];

/// gRPC's codes of what the proxy itself says.
const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;
const UNAVAILABLE: u16 = 14;

type Outgoing = BoxBody<Bytes, hyper::Error>;

/// What the door opens onto.
#[derive(Clone)]
pub struct Parts {
    /// containerd's socket.
    pub containerd: Arc<Path>,
    pub preheats: Preheats,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Serves kubelet until the daemon stops.
pub async fn serve(listener: UnixListener, parts: Parts) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = parts.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Err(error) => {
                tracing::warn!("cannot accept a client of the CRI proxy: {error}");
                let _stopping = timeout(ACCEPT_PAUSE, parts.stop.cancelled()).await;
            }
            Ok((stream, _)) => match connections.clone().try_acquire_owned() {
                Err(_) => tracing::warn!("closed a client of the CRI proxy: {CONNECTIONS_MAX} are connected"),
                Ok(permit) => {
                    let client = Client { parts: parts.clone(), containerd: Arc::default() };
                    parts.tasks.spawn(async move {
                        let _permit = permit;
                        client.welcome(stream).await;
                    });
                }
            },
        }
    }
}

/// One connection of kubelet's, and ours to containerd that belongs to it.
#[derive(Clone)]
struct Client {
    parts: Parts,
    containerd: Arc<Mutex<Option<SendRequest<Outgoing>>>>,
}

impl Client {
    async fn welcome(self, stream: UnixStream) {
        let stop = self.parts.stop.clone();
        let service = hyper::service::service_fn(move |request| {
            let client = self.clone();
            async move { Ok::<_, std::convert::Infallible>(client.answer(request).await) }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(TokioIo::new(stream), service);
        if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
            tracing::debug!("a client's connection to the CRI proxy ended: {error}");
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Outgoing> {
        let Some(call) = SERVICES.iter().find_map(|service| request.uri().path().strip_prefix(service))
        else {
            let what = format!("{} is not passed through: only the image service is", request.uri().path());
            return refusal(UNIMPLEMENTED, &what);
        };
        if call != "PullImage" {
            return self.pass(request.map(BodyExt::boxed)).await;
        }
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, REQUEST_LEN_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return refusal(RESOURCE_EXHAUSTED, "a PullImage larger than containerd takes");
            }
            Err(error) => return refusal(UNAVAILABLE, &format!("the request broke off: {error}")),
        };
        let started = self.start(&body).await;
        let whole = Full::new(body).map_err(|never| match never {}).boxed();
        let response = self.pass(Request::from_parts(head, whole)).await;
        // Unary: with its answer the pull is over.
        drop(started);
        response
    }

    /// Starts the layers of the image that is about to be pulled; what comes of it is no matter of containerd's pull.
    async fn start(&self, body: &[u8]) -> Option<Started> {
        let wish = pull::read(body)?;
        let (preheats, gone) = (self.parts.preheats.clone(), CancellationToken::new());
        let (over, image) = (gone.clone(), wish.image.to_string());
        let (ready, started) = tokio::sync::oneshot::channel();
        self.parts.tasks.spawn(async move {
            let starting = Box::pin(preheats.ahead(&wish.image, &wish.asker));
            match over.run_until_cancelled(starting).await {
                Some(Ok(pulls)) => {
                    tracing::info!(image, layers = pulls.len(), "started ahead of containerd");
                    let _client_waits_no_longer = ready.send(());
                    hold(pulls, &over).await;
                }
                Some(Err(error)) => {
                    tracing::info!(image, "not started ahead of containerd: {}", chain_of(&error));
                }
                None => {}
            }
        });
        let guard = Started { _over: gone.drop_guard() };
        // Started, failed, or late: in each case containerd is asked now.
        let _whichever = timeout(AHEAD_MAX, started).await;
        Some(guard)
    }

    /// Passes a call on as it is.
    async fn pass(&self, request: Request<Outgoing>) -> Response<Outgoing> {
        let mut containerd = match self.connected().await {
            Ok(containerd) => containerd,
            Err(error) => {
                let socket = self.parts.containerd.display();
                return refusal(UNAVAILABLE, &format!("containerd does not answer at {socket}: {error}"));
            }
        };
        match containerd.send_request(readdressed(request)).await {
            Ok(response) => response.map(BodyExt::boxed),
            Err(error) => refusal(UNAVAILABLE, &format!("containerd did not answer: {error}")),
        }
    }

    /// The connection to containerd, made anew where it has gone.
    async fn connected(&self) -> std::io::Result<SendRequest<Outgoing>> {
        let mut kept = self.containerd.lock().await;
        if let Some(live) = kept.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(live.clone());
        }
        let stream = timeout(CONNECT_MAX, UnixStream::connect(&self.parts.containerd)).await??;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
        let stop = self.parts.stop.clone();
        self.parts.tasks.spawn(async move {
            // Whoever waits for an answer gets the error.
            let _ended = stop.run_until_cancelled(connection).await;
        });
        Ok(kept.insert(sender).clone())
    }
}

/// The pull that kubelet waits for is not over.
struct Started {
    _over: tokio_util::sync::DropGuard,
}

async fn hold(pulls: Vec<Pull>, over: &CancellationToken) {
    over.cancelled().await;
    drop(pulls);
}

/// The same call at containerd: only its authority may be missing, which HTTP/2 wants.
fn readdressed(request: Request<Outgoing>) -> Request<Outgoing> {
    let (mut head, body) = request.into_parts();
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    let authority = uri.authority.take();
    uri.authority = Some(authority.unwrap_or(http::uri::Authority::from_static("localhost")));
    head.uri = Uri::from_parts(uri).expect("a path that came with HTTP/2 has all its parts");
    head.version = Version::HTTP_2;
    Request::from_parts(head, body)
}

/// An error of the proxy's own, as gRPC has it: in the head, with no body.
fn refusal(code: u16, what: &str) -> Response<Outgoing> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", code.into());
    let plain = percent_encoding::utf8_percent_encode(what, percent_encoding::CONTROLS).to_string();
    if let Ok(message) = plain.parse() {
        headers.insert("grpc-message", message);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_grpcs() {
        let refused = refusal(UNIMPLEMENTED, "no\nsuch thing");
        assert_eq!(refused.headers()["grpc-status"], "12");
        assert_eq!(refused.headers()["grpc-message"], "no%0Asuch thing");
    }

    #[test]
    fn a_call_keeps_its_path_and_headers() {
        let body = || Empty::new().map_err(|never| match never {}).boxed();
        let request = Request::post("/runtime.v1.ImageService/ListImages").header("te", "trailers");
        let passed = readdressed(request.body(body()).unwrap());
        assert_eq!(passed.uri(), "http://localhost/runtime.v1.ImageService/ListImages");
        assert_eq!(passed.headers()["te"], "trailers");
    }
}
