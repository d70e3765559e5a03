//! Both halves of a handshake between members: who is there, proven, or one line that says why not.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    Identity, NameError, certificate,
    stream::{Side, TlsFailure, TlsStream},
};

/// A caller gets this long to prove itself: two round trips across an ocean and a slow core fit in many
/// times over, and one who says nothing holds a socket no longer.
const ACCEPT_MAX: Duration = Duration::from_secs(5);

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
    #[error("a connection was gone before it was looked at")]
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

/// Proves the caller at the other end of `tcp`.
pub async fn accept(identity: &Identity, tcp: TcpStream) -> Result<Accepted, AcceptError> {
    let from = tcp.peer_addr().map_err(AcceptError::Gone)?;
    // Control messages are small and answered; a piece is written in one go.
    tcp.set_nodelay(true).map_err(AcceptError::Gone)?;
    let accepting = TlsAcceptor::from(identity.server_config()).accept(tcp);
    let stream = timeout(ACCEPT_MAX, accepting).await.map_err(|_| AcceptError::Timeout { from })?;
    let stream = stream
        .map_err(|source| AcceptError::Tls { from, failure: TlsFailure { side: Side::Server, source } })?;
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
