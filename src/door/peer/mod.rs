//! What other members may ask: who is here, the swarm of a digest, pieces.
//!
//! ```text
//!   TCP ─▶ mutual TLS (who is it?) ─▶ h2: Members.Hello, .Swim, .Compare, .Exchange, Swarm.Join, .Holds, Preheat.Pull
//!                                  └▶ HTTP/1.1: GET /v1/blobs/<digest>/pieces/<index>
//!                                               GET /v1/blobs/<digest>/chain
//!                                               GET /v1/blobs/<digest>/statements
//!                                               GET /v1/blobs/<digest>/length
//!                                               GET /v1/tags/<digest of its name>
//! ```
//! A piece is checked on its way out by the store. A few uploads run at full speed; the rest is told to look
//! elsewhere, at members that were just sent the piece. Whoever holds a certificate of the mesh's CA may ask for
//! any blob whose digest he knows.

mod control;
mod fed;
mod pieces;

use std::{io, sync::Arc, time::Duration};

use self::fed::Fed;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    identity::{self, AcceptError, Accepted, Identity},
    mesh::Mesh,
    preheat::Preheats,
    pull::Pulls,
};

/// Connections at a time: a handful from each of a hundred members that pull at once, 64 KiB of buffers each.
const CONNECTIONS_MAX: usize = 1024;
/// Streams of one h2 connection: a member that pulls twenty images at once, with the layers tracked here.
const STREAMS_MAX: u32 = 256;
/// Bytes of a request's head over HTTP/1.1; ours are below 300. It is also how much of a piece may wait in a
/// buffer after its upload slot is free again.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// A request's head takes no longer once it has begun, and an idle connection is kept for as long.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// An h2 connection is asked this often whether anybody is there. Whoever pulls is sent a beat five times a
/// second and noticed by that; this is for connections that are kept idle, of which there are hundreds.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
/// After an error of accept (no more descriptors), the listener pauses: asking at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the door opens onto.
#[derive(Clone)]
pub struct Parts {
    pub identity: Identity,
    pub mesh: Mesh,
    pub pulls: Pulls,
    pub preheats: Preheats,
}

/// One caller's view of the door.
#[derive(Clone)]
struct Door {
    parts: Parts,
    slots: Arc<Semaphore>,
    fed: Arc<Mutex<Fed>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Serves other members until `stop`.
pub async fn serve(listener: TcpListener, parts: Parts, stop: CancellationToken, tasks: TaskTracker) {
    let door = Door {
        parts,
        slots: Arc::new(Semaphore::new(pieces::SLOTS)),
        fed: Arc::default(),
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Err(error) => pause(&error, &stop).await,
            Ok((tcp, from)) => match connections.clone().try_acquire_owned() {
                Err(_) => tracing::warn!(%from, "closed a connection: {CONNECTIONS_MAX} are open"),
                Ok(permit) => {
                    let door = door.clone();
                    tasks.spawn(async move {
                        let _permit = permit;
                        door.welcome(tcp).await;
                    });
                }
            },
        }
    }
}

async fn pause(error: &io::Error, stop: &CancellationToken) {
    tracing::warn!("cannot accept a connection from a member: {error}");
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
    }
}

impl Door {
    async fn welcome(self, tcp: TcpStream) {
        let stop = self.stop.clone();
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = identity::accept(&self.parts.identity, tcp) => accepted,
        };
        match accepted {
            Err(error @ AcceptError::Gone(_)) => tracing::debug!("{error}"),
            Err(error) => tracing::warn!("{error}"),
            Ok(Accepted { stream, peer_name, h2 }) => {
                let serving = async {
                    match h2 {
                        true => self.speak_h2(TokioIo::new(stream), peer_name.clone()).await,
                        false => self.speak_http1(TokioIo::new(stream), peer_name.clone()).await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    ended = serving => if let Err(error) = ended {
                        tracing::debug!(peer = %peer_name, "a member's connection ended: {error}");
                    },
                }
            }
        }
    }

    async fn speak_h2(
        self,
        stream: TokioIo<identity::TlsStream>,
        peer_name: String,
    ) -> Result<(), hyper::Error> {
        let routes = hyper_util::service::TowerToHyperService::new(control::routes(self, peer_name));
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(stream, routes)
            .await
    }

    async fn speak_http1(
        self,
        stream: TokioIo<identity::TlsStream>,
        peer_name: String,
    ) -> Result<(), hyper::Error> {
        let peer_name: Arc<str> = peer_name.into();
        let answer = hyper::service::service_fn(move |request| {
            let (door, peer) = (self.clone(), Arc::clone(&peer_name));
            async move { Ok::<_, std::convert::Infallible>(door.piece_request(&request, &peer).await) }
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(BUFFER_LEN_MAX)
            .serve_connection(stream, answer)
            .await
    }
}

#[cfg(test)]
mod tests;
