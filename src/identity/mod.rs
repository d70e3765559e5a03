//! Who this node is to the others: its certificate, the roots that it trusts, and their rotation.
//!
//! ```text
//!  ca.pem ──┐  read::read             ┌─ server_config()  ── accept()   the mesh door
//!  node.pem ├─ every fault is one ──▶ │  Identity
//!  node-key ┘  line with its mend     └─ client_config()  ── connect()  connections of the mesh
//!                     ▲
//!                     └── reload(): polled; new files replace what the next handshake uses
//! ```
//! There is no plaintext mode and no way to skip a check: a fault in any file means no [`Identity`], and
//! without one nothing here opens or accepts a connection. A node's name is the first DNS name of its
//! certificate; other DNS names and addresses only let it be dialed by them.

mod certificate;
mod explain;
mod handshake;
mod read;
mod stream;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

pub use certificate::{NameError, peer_name};
pub use explain::explain;
pub use handshake::{AcceptError, Accepted, ConnectError, Connected, accept, connect};
pub use read::{IdentityError, date};
pub use stream::{Side, TlsFailure, TlsStream};

/// Where the certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The roots that other members' certificates must come from; several while a CA is replaced.
    pub ca: PathBuf,
    /// This node's certificate, followed by intermediates if there are any.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ca: "/etc/flotilla/tls/ca.pem".into(),
            cert: "/etc/flotilla/tls/node.pem".into(),
            key: "/etc/flotilla/tls/node-key.pem".into(),
        }
    }
}

/// This node's certificate and the roots that it trusts. Cheap to clone; a reload is seen by every clone.
#[derive(Clone)]
pub struct Identity {
    settings: Arc<Settings>,
    current: Arc<ArcSwap<read::Material>>,
}

/// Reads and proves the files that `settings` names, as of `now`.
pub fn load(settings: &Settings, now: SystemTime) -> Result<Identity, IdentityError> {
    let material = read::read(settings, now)?;
    material.warn(settings);
    Ok(Identity { settings: Arc::new(settings.clone()), current: Arc::new(ArcSwap::from_pointee(material)) })
}

impl Identity {
    /// The node's name in the mesh: the first DNS name of its certificate.
    #[must_use]
    pub fn name(&self) -> String {
        self.current.load().name.clone()
    }

    /// TLS 1.3, a client certificate of our CA required, ALPN `h2` and `http/1.1`.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    /// TLS 1.3 with our certificate, trusting our CA only. Sessions are resumed across the configs that
    /// this hands out until the next reload.
    #[must_use]
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.current.load().client);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// Reads the files again; `true` if they had changed. On an error the old certificate stays in use:
    /// a rotation that is half written is seen whole by the next call. [`IdentityError::Expired`] means
    /// that the others refuse us from now on.
    pub fn reload(&self, now: SystemTime) -> Result<bool, IdentityError> {
        let material = read::read(&self.settings, now)?;
        let current = self.current.load();
        if material.same_files(&current) {
            return Ok(false);
        }
        if material.name != current.name {
            return Err(IdentityError::Renamed {
                path: self.settings.cert.clone(),
                new: material.name,
                running: current.name.clone(),
            });
        }
        material.warn(&self.settings);
        self.current.store(Arc::new(material));
        Ok(true)
    }

    /// When the certificate, or the first of its intermediates, expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.current.load().term.not_after
    }

    /// Whether it expires soon, and should have been replaced by now.
    #[must_use]
    pub fn is_near_its_end(&self, now: SystemTime) -> bool {
        now >= self.current.load().term.near_end
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
