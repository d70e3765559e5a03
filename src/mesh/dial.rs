//! From an address to a proven member: look up, connect, prove both sides.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};

use super::Member;
use crate::identity::{self, Connected, Identity};

/// A second is hundreds of round trips within a data centre and several around the world: who has not
/// answered a SYN by then (and its first repetition) is better replaced by another source.
const TCP_CONNECT_MAX: Duration = Duration::from_secs(1);
/// A handshake costs the other side two signatures, and a crowd dials at once: on a busy node with one
/// slow core a hundred of them still fit.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// Why there is no connection to a member.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the mesh is closed: this node has no valid certificate")]
    Closed,
    #[error("cannot look up {address}")]
    Lookup {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} refused the connection: no daemon listens there")]
    Refused { address: String },
    #[error("cannot connect to {address}: {why}")]
    Tcp {
        address: String,
        why: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} did not answer within {after:?}")]
    Timeout { address: String, after: Duration },
    #[error("no proven connection to {address}: {why}")]
    Tls { address: String, why: String },
    #[error("{address} is `{found}` by its certificate, not `{wanted}`")]
    WrongMember { address: String, found: String, wanted: String },
    #[error("{address} does not speak HTTP on its mesh port: {why}")]
    Http { address: String, why: String },
}

impl ConnectError {
    /// Whether asking the same address again at once is pointless.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Closed | Self::Refused { .. } | Self::Tls { .. } | Self::WrongMember { .. } => true,
            Self::Lookup { .. } | Self::Tcp { .. } | Self::Timeout { .. } | Self::Http { .. } => false,
        }
    }
}

/// Makes connections in this node's name. Cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer {
    identity: Identity,
    local: Arc<Mutex<Option<IpAddr>>>,
}

impl Dialer {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, local: Arc::default() }
    }

    /// The address from which this node reaches others; a loopback address only while there is no other.
    pub(super) fn local(&self) -> Option<IpAddr> {
        *self.local.lock()
    }

    /// A connection to the daemon of this very member: its certificate names it first.
    pub(super) async fn member(&self, to: &Member, alpn: &[&[u8]]) -> Result<Connected, ConnectError> {
        let connected = self.address(&to.address, &to.name, alpn).await?;
        if connected.peer_name != to.name {
            return Err(ConnectError::WrongMember {
                address: to.address.clone(),
                found: connected.peer_name,
                wanted: to.name.clone(),
            });
        }
        Ok(connected)
    }

    /// A connection to `address` (`host:port`) whose certificate names `name`, a DNS name or an IP address.
    pub(super) async fn address(
        &self,
        address: &str,
        name: &str,
        alpn: &[&[u8]],
    ) -> Result<Connected, ConnectError> {
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Lookup {
            address: address.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "neither a DNS name nor an IP address"),
        })?;
        let tcp = connect_tcp(address).await?;
        let local = tcp.local_addr().map(|local| local.ip());
        let handshake = identity::connect(&self.identity, tcp, server_name, alpn);
        let connected = timeout(HANDSHAKE_MAX, handshake)
            .await
            .map_err(|_| ConnectError::Timeout { address: address.to_owned(), after: HANDSHAKE_MAX })?
            .map_err(|error| ConnectError::Tls { address: address.to_owned(), why: error.to_string() })?;
        if let Ok(local) = local {
            self.learn(local);
        }
        Ok(connected)
    }

    fn learn(&self, local: IpAddr) {
        let mut known = self.local.lock();
        if known.is_none_or(|known| known.is_loopback() && !local.is_loopback()) {
            *known = Some(local);
        }
    }
}

/// The first of the addresses of `host:port` that answers, within one limit for all.
async fn connect_tcp(address: &str) -> Result<TcpStream, ConnectError> {
    let timed_out = || ConnectError::Timeout { address: address.to_owned(), after: TCP_CONNECT_MAX };
    let connecting = async {
        let found: Vec<SocketAddr> = tokio::net::lookup_host(address)
            .await
            .map_err(|source| ConnectError::Lookup { address: address.to_owned(), source })?
            .collect();
        TcpStream::connect(&*found).await.map_err(|source| {
            let (address, why) = (address.to_owned(), source.to_string());
            if source.kind() == io::ErrorKind::ConnectionRefused {
                ConnectError::Refused { address }
            } else {
                ConnectError::Tcp { address, why, source }
            }
        })
    };
    let tcp = timeout(TCP_CONNECT_MAX, connecting).await.map_err(|_| timed_out())??;
    tcp.set_nodelay(true).map_err(|source| ConnectError::Tcp {
        address: address.to_owned(),
        why: source.to_string(),
        source,
    })?;
    Ok(tcp)
}
