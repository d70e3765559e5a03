//! Both halves of a handshake between members: who is there, proven, or one line that says why not.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, ServerName};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    Identity, NameError, certificate,
    stream::{Side, TlsFailure, TlsStream},
};

/// A caller gets this long to prove itself: two round trips across an ocean and a slow core fit in many
/// times over, and one who says nothing holds a socket no longer.
const ACCEPT_MAX: Duration = Duration::from_secs(5);

/// A refused caller may still have sent a request of ordinary size, and hangs up within a round trip.
const DRAIN_LEN_MAX: u64 = 64 * 1024;
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// A proven caller.
pub struct Accepted {
    pub stream: TlsStream,
    /// The first DNS name of its certificate.
    pub peer_name: String,
    /// It chose HTTP/2; otherwise HTTP/1.1.
    pub h2: bool,
}

/// Why a caller was turned away. The line names where it came from and what was wrong.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("refused a connection from {from}: {failure}")]
    Tls { from: SocketAddr, failure: TlsFailure },
    #[error("refused a connection from {from}: it did not finish the TLS handshake within {ACCEPT_MAX:?}")]
    Timeout { from: SocketAddr },
    #[error("refused a connection from {from}: {reason}")]
    Name { from: SocketAddr, reason: NameError },
    #[error("refused a connection from {from}: the certificate of its resumed session has expired")]
    Expired { from: SocketAddr },
    /// Whoever only wants to know whether this machine answers hangs up without a byte.
    #[error("a connection was gone before its first byte")]
    Gone(#[source] io::Error),
}

/// A proven member that we dialed.
pub struct Connected {
    pub stream: TlsStream,
    /// The first DNS name of its certificate.
    pub peer_name: String,
}

/// Why a handshake that we began came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Tls(TlsFailure),
    #[error("{0}")]
    Name(NameError),
    #[error("the certificate of its resumed session has expired")]
    Expired,
}

/// Bytes that the kernel takes beyond what is on its way. By itself it takes megabytes: an upload would be done, and its
/// slot free, long before the piece is sent.
const NOTSENT_MAX: u32 = 128 << 10;

/// Proves the caller at the other end of `tcp`.
pub async fn accept(identity: &Identity, tcp: TcpStream) -> Result<Accepted, AcceptError> {
    let from = tcp.peer_addr().map_err(AcceptError::Gone)?;
    // Control messages are small and answered; a piece is written in one go.
    tcp.set_nodelay(true).map_err(AcceptError::Gone)?;
    SockRef::from(&tcp).set_tcp_notsent_lowat(NOTSENT_MAX).map_err(AcceptError::Gone)?;
    let deadline = Instant::now() + ACCEPT_MAX;
    match timeout_at(deadline, tcp.peek(&mut [0])).await {
        Ok(Ok(0)) => return Err(AcceptError::Gone(io::ErrorKind::UnexpectedEof.into())),
        Ok(first) => first.map_err(AcceptError::Gone)?,
        Err(_) => return Err(AcceptError::Timeout { from }),
    };
    let accepting = TlsAcceptor::from(identity.server_config()).accept(tcp).into_fallible();
    let stream = match timeout_at(deadline, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((source, tcp))) => {
            let_it_read_why(tcp).await;
            return Err(AcceptError::Tls { from, failure: TlsFailure { side: Side::Server, source } });
        }
        Err(_) => return Err(AcceptError::Timeout { from }),
    };
    let (_, session) = stream.get_ref();
    let h2 = session.alpn_protocol() == Some(b"h2");
    let peer_name = match prove(session.peer_certificates().unwrap_or_default()) {
        Ok(name) => name,
        Err(Doubt::Name(reason)) => return Err(AcceptError::Name { from, reason }),
        Err(Doubt::Expired) => return Err(AcceptError::Expired { from }),
    };
    Ok(Accepted { stream: TlsStream::new(stream.into(), Side::Server), peer_name, h2 })
}

/// Proves that whoever is at the other end of `tcp` has a certificate of our CA that names `name`. The
/// caller bounds how long that may take.
pub async fn connect(
    identity: &Identity,
    tcp: TcpStream,
    name: ServerName<'static>,
    alpn: &[&[u8]],
) -> Result<Connected, ConnectError> {
    let connector = TlsConnector::from(Arc::clone(&identity.client_config(alpn)));
    let stream = connector
        .connect(name, tcp)
        .await
        .map_err(|source| ConnectError::Tls(TlsFailure { side: Side::Client, source }))?;
    let peer_name = match prove(stream.get_ref().1.peer_certificates().unwrap_or_default()) {
        Ok(name) => name,
        Err(Doubt::Name(reason)) => return Err(ConnectError::Name(reason)),
        Err(Doubt::Expired) => return Err(ConnectError::Expired),
    };
    Ok(Connected { stream: TlsStream::new(stream.into(), Side::Client), peer_name })
}

/// Closing a socket with bytes unread resets the connection, and the alert that says why is lost on its
/// way. A client of TLS 1.3 has sent its first request by then, so it is read before the socket closes.
async fn let_it_read_why(mut tcp: TcpStream) {
    let draining = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(DRAIN_LEN_MAX), &mut tokio::io::sink()).await
    };
    // Whether it listened is its own affair.
    let _ = timeout(DRAIN_MAX, draining).await;
}

enum Doubt {
    Name(NameError),
    Expired,
}

/// A resumed session carries the certificate of its first handshake, which nobody has looked at since.
fn prove(certs: &[CertificateDer<'_>]) -> Result<String, Doubt> {
    let facts = certificate::facts(certs.first().ok_or(Doubt::Name(NameError::NoCertificate))?)
        .map_err(Doubt::Name)?;
    if SystemTime::now() > facts.not_after {
        return Err(Doubt::Expired);
    }
    facts.name().ok_or(Doubt::Name(NameError::NoDnsName(facts.subject)))
}
