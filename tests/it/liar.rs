//! A member that serves wrong bytes, and remembers what it is told: whoever has a node's certificate stands in front of its
//! mesh port.
//!
//! ```text
//! caller ── TLS as the node ──▶ Liar ── TLS as the caller ──▶ the node's daemon
//!                                │  h2: passed on as it is
//!                                └─ HTTP/1.1: the first byte of every piece is another
//! ```

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use flotilla::identity::{self, Accepted, Identity, TlsStream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_util::io::InspectReader;

/// A liar; it stops when dropped.
pub(crate) struct Liar {
    told: Told,
    _runtime: Runtime,
}

/// What its callers have sent, without the TLS.
type Told = Arc<Mutex<Vec<u8>>>;

/// What its connections share.
struct Shared {
    name: String,
    /// `<lab>/tls`, with a folder for each node.
    tls: PathBuf,
    daemon: SocketAddr,
    told: Told,
}

impl Liar {
    /// Listens at `address` as the node `name`, whose daemon is at `daemon`.
    pub(crate) fn start(name: &str, tls: &Path, address: SocketAddr, daemon: SocketAddr) -> Liar {
        let told = Told::default();
        let shared =
            Arc::new(Shared { name: name.to_owned(), tls: tls.to_owned(), daemon, told: told.clone() });
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the runtime is the liar's own and ends with it")]
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move { shared.serve(tcp).await });
            }
        });
        Liar { told, _runtime: runtime }
    }

    /// What it was told by all callers: heads as they are (those of gRPC are packed), digests and names in the clear.
    pub(crate) fn told(&self) -> String {
        String::from_utf8_lossy(&self.told.lock()).into_owned()
    }
}

impl Shared {
    fn identity(&self, name: &str) -> Identity {
        let file = |file: &str| self.tls.join(name).join(file);
        let settings =
            identity::Settings { ca: file("ca.pem"), cert: file("node.pem"), key: file("node-key.pem") };
        identity::load(&settings, SystemTime::now()).unwrap()
    }

    /// A caller that hangs up, and a daemon that is stopped, end a connection: that is all that they can do.
    async fn serve(&self, tcp: TcpStream) {
        let Ok(Accepted { stream, peer_name, h2 }) = identity::accept(&self.identity(&self.name), tcp).await
        else {
            return;
        };
        let told = self.told.clone();
        let mut stream = InspectReader::new(stream, move |bytes| told.lock().extend_from_slice(bytes));
        let alpn: &[&[u8]] = if h2 { &[b"h2"] } else { &[b"http/1.1"] };
        let Ok(tcp) = TcpStream::connect(self.daemon).await else { return };
        let name = ServerName::try_from(self.name.clone()).unwrap();
        let Ok(mut daemon) = identity::connect(&self.identity(&peer_name), tcp, name, alpn).await else {
            return;
        };
        if h2 {
            let _ended = tokio::io::copy_bidirectional(&mut stream, &mut daemon.stream).await;
        } else {
            spoil(stream, daemon.stream).await;
        }
    }
}

async fn spoil(caller: impl AsyncRead + AsyncWrite + Unpin, daemon: TlsStream) {
    let Ok((daemon, connection)) = client::conn::http1::handshake(TokioIo::new(daemon)).await else { return };
    let daemon = Arc::new(tokio::sync::Mutex::new(daemon));
    let service = service_fn(move |request: Request<Incoming>| {
        let daemon = daemon.clone();
        async move {
            let is_piece = request.uri().path().contains("/pieces/");
            let asked = daemon.lock().await.send_request(request.map(|_| Empty::<Bytes>::new())).await;
            let Ok(answer) = asked else { return Ok::<_, Infallible>(gone()) };
            let (head, body) = answer.into_parts();
            let Ok(body) = body.collect().await else { return Ok(gone()) };
            let mut bytes = body.to_bytes().to_vec();
            if let Some(first) = bytes.first_mut().filter(|_| is_piece) {
                *first ^= 0xff;
            }
            Ok(Response::from_parts(head, Full::new(Bytes::from(bytes))))
        }
    });
    let serving = server::conn::http1::Builder::new().serve_connection(TokioIo::new(caller), service);
    let _ended = tokio::join!(connection, serving);
}

fn gone() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
