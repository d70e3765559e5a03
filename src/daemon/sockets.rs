//! Listeners: given by systemd, or opened here.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("something else listens on {0}; stop it, or set node.run_dir")]
    Taken(PathBuf),
    #[error("{0} is there and is no socket; remove it, or set node.run_dir")]
    NotASocket(PathBuf),
    #[error("cannot make the folder {path}, which node.run_dir names")]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot listen on {path}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address}, which {key} names; stop what listens there, or set {key}")]
    Tcp { address: SocketAddr, key: &'static str, source: io::Error },
    #[error("cannot tell where the door listens")]
    Address(#[source] io::Error),
    #[error("the socket that systemd gave cannot be used")]
    Given(#[source] io::Error),
}

/// The snapshots socket that systemd opened for this process, if it did.
pub(super) fn given() -> Result<Option<UnixListener>, SocketError> {
    let Some(listener) = listenfd::ListenFd::from_env().take_unix_listener(0).map_err(SocketError::Given)?
    else {
        return Ok(None);
    };
    listener.set_nonblocking(true).map_err(SocketError::Given)?;
    UnixListener::from_std(listener).map(Some).map_err(SocketError::Given)
}

/// A socket at `path` that only root may use (0600). A socket file that nobody listens on is replaced.
pub(super) fn open(path: &Path) -> Result<UnixListener, SocketError> {
    let unix = |source| SocketError::Unix { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|source| SocketError::Folder { path: folder.to_owned(), source })?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(SocketError::Taken(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let kind = std::fs::symlink_metadata(path).map_err(unix)?.file_type();
            if !std::os::unix::fs::FileTypeExt::is_socket(&kind) {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(unix)?;
        }
        Err(source) => return Err(unix(source)),
    }
    // Between bind and chmod the umask decides who may connect, so it closes the socket to all but the owner.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(unix)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(unix)?;
    Ok(listener)
}

/// Connections that wait to be accepted: what the kernel allows by default. A crowd of a thousand calls one member in
/// the same moment, and whoever finds no place waits a second before it calls again.
const BACKLOG: u32 = 4096;

/// A listener on `address`, which the setting `key` names. The address may come later, as that of a bridge does which
/// Docker makes when it starts.
pub(super) fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, SocketError> {
    let listener = match listener(address, false) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            let listener = listener(address, true);
            if listener.is_ok() {
                tracing::warn!(%address, key, "this machine has no such address yet: nobody gets in until it has");
            }
            listener
        }
        listener => listener,
    };
    listener.map_err(|source| SocketError::Tcp { address, key, source })
}

fn listener(address: SocketAddr, may_come_later: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    match address {
        _ if !may_come_later => {}
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where a listener really listens.
pub(super) fn address(listener: &TcpListener) -> Result<SocketAddr, SocketError> {
    listener.local_addr().map_err(SocketError::Address)
}

/// Says at which address a door is, which a port of 0 leaves to the kernel.
pub(super) fn announce(door: &str, listener: &TcpListener) {
    if let Ok(addr) = listener.local_addr() {
        tracing::info!(door, %addr, "listening");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/snapshots.sock");
        let first = open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(open(&path), Err(SocketError::Taken(_))));
        drop(first);
        open(&path).unwrap();
    }

    #[tokio::test]
    async fn an_address_may_come_later() {
        for address in ["192.0.2.7:0", "[2001:db8::7]:0"] {
            let listener = listen(address.parse().unwrap(), "mirror.listen").unwrap();
            assert_eq!(listener.local_addr().unwrap().ip(), address.parse::<SocketAddr>().unwrap().ip());
        }
        let taken = listen("127.0.0.1:0".parse().unwrap(), "mirror.listen").unwrap();
        let again = listen(taken.local_addr().unwrap(), "mirror.listen").unwrap_err();
        assert!(again.to_string().contains("which mirror.listen names"), "{again}");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(open(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
