//! Build, run, drain.

use std::{path::PathBuf, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Settings, SettingsError, build::Build, sockets::SocketError};
use crate::{door::registry, mesh, origin, snapshot, store};

/// How long a stop waits for what is under way. Nothing that is committed depends on it; systemd kills after 90 s.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot open the blob store {path}, which node.data_dir names")]
    Store { path: PathBuf, source: store::OpenError },
    #[error("cannot open the snapshots in {path}, which containerd.snapshot_root names")]
    Snapshots { path: PathBuf, source: snapshot::OpenError },
    #[error("cannot prepare for registries")]
    Origin(#[source] origin::NewError),
    #[error(
        "registry.credential_provider_config and registry.credential_provider_bin_dir belong together: set both or none"
    )]
    HalfProviders,
    #[error("cannot open TLS for the proxy's hosts")]
    Proxy(#[source] registry::AuthorityError),
    #[error("mesh.members")]
    Mesh(#[source] mesh::SeedError),
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; what is wrong with what.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    on_signal(&tasks, stop.clone())?;
    let (daemon, entrance) = Build { settings: &settings, tasks: &tasks, stop: &stop }.daemon()?;
    daemon.serve(entrance, &settings, &tasks, &stop)?;
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    stop.cancelled().await;
    notify(&[sd_notify::NotifyState::Stopping]);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!(waited = ?DRAIN, "stopped with tasks under way; what they had is kept for the next start");
    }
    Ok(())
}

/// Outside systemd there is nobody to tell.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell systemd");
    }
}

fn on_signal(tasks: &TaskTracker, stop: CancellationToken) -> Result<(), RunError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    tasks.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stop.cancelled() => {}
        }
        stop.cancel();
    });
    Ok(())
}
