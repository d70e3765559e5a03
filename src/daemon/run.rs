//! Build, run, drain.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Settings, SettingsError, modules,
    report::Reporter,
    sockets::{self, SocketError},
};
use crate::{
    containerd::Client,
    door::{self, admin, snapshots::Interceptor},
    identity::{self, Identity, IdentityError},
    layer::{
        self, AdoptParts, Adopter, Layers,
        hold::{self, Holder},
        intercept::Catalog,
    },
    mesh::{self, Mesh},
    origin::{self, Origin},
    pull::{self, Pulls},
    snapshot::{self, Snapshots},
    store::{self, Store},
};

/// How long a stop waits for what is under way. Nothing that is committed depends on it; systemd kills after 90 s.
const DRAIN: Duration = Duration::from_secs(10);

/// How often the store looks at its limits: DESIGN promises freed bytes within 10 s of containerd's collection.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// How often the certificate files are looked at; a rotation is seen within this time.
const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot open the blob store {path}")]
    Store { path: PathBuf, source: store::OpenError },
    #[error("cannot open the snapshots in {path}")]
    Snapshots { path: PathBuf, source: snapshot::OpenError },
    #[error("cannot prepare for registries")]
    Origin(#[source] origin::NewError),
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
    let daemon = Daemon::build(&settings, &tasks, &stop).await?;
    daemon.serve(&settings, &tasks, &stop).await?;
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

/// All modules, wired.
struct Daemon {
    metrics: Arc<Registry>,
    store: Store,
    snapshots: Arc<Snapshots>,
    origin: Origin,
    identity: Result<Identity, Arc<IdentityError>>,
    mesh: Mesh,
    mesh_listener: Option<TcpListener>,
    pulls: Pulls,
    layers: Arc<Layers>,
    containerd: Client,
}

impl Daemon {
    async fn build(
        settings: &Settings,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, RunError> {
        let mut registry = Registry::default();
        let data_dir = settings.path("node.data_dir").unwrap_or_default();
        let store = Store::open(modules::store(settings, &data_dir)?)
            .map_err(|source| RunError::Store { path: data_dir, source })?;
        let root = settings.path("containerd.snapshot_root").unwrap_or_default();
        let snapshots = Snapshots::open_with(modules::snapshots(settings, &root))
            .map_err(|source| RunError::Snapshots { path: root, source })?;
        let snapshots = Arc::new(snapshots);
        let origin = Origin::new(modules::origin(settings)).map_err(RunError::Origin)?;
        let identity = identity::load(&modules::identity(settings), SystemTime::now()).map_err(Arc::new);
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let generation = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
        let mesh_listener = match &identity {
            Ok(_) => Some(sockets::listen(modules::mesh_listen(settings), "mesh.listen").await?),
            Err(_) => None,
        };
        let bound = mesh_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let known = identity.as_ref().ok();
        let mesh = Mesh::new(modules::mesh(settings, known, bound)?, known.cloned(), generation);
        let pulls = Pulls::new(pull::Parts {
            store: store.clone(),
            origin: origin.clone(),
            mesh: mesh.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            metrics: pull::Metrics::register(&mut registry),
            settings: pull::Settings::default(),
        });
        let containerd = Client::new(&settings.path("containerd.address").unwrap_or_default());
        let metrics = layer::Metrics::register(&mut registry);
        let adopter = Adopter::start(AdoptParts {
            containerd: containerd.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            namespaces: settings.texts("containerd.namespaces"),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let (holder, holds_ended) =
            Holder::new(containerd.clone(), tasks.clone(), stop.clone(), hold::Limits::default());
        let parts = layer::Parts {
            containerd: containerd.clone(),
            snapshots: Arc::clone(&snapshots),
            store: store.clone(),
            pulls: pulls.clone(),
            catalog: Arc::new(Catalog::new(containerd.clone())),
            holder,
            adopter,
            tasks: tasks.clone(),
            stop: stop.clone(),
            metrics,
        };
        let layers = Arc::new(Layers::new(parts, modules::layers(settings)));
        tasks.spawn(Arc::clone(&layers).watch_holds(holds_ended));
        Ok(Self {
            metrics: Arc::new(registry),
            store,
            snapshots,
            origin,
            identity,
            mesh,
            mesh_listener,
            pulls,
            layers,
            containerd,
        })
    }
}

impl Daemon {
    /// Opens the doors. The mesh door stays shut without a valid certificate.
    async fn serve(
        mut self,
        settings: &Settings,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let run_dir = settings.path("node.run_dir").unwrap_or_default();
        let snapshots = match sockets::given()? {
            Some(listener) => listener,
            None => sockets::open(&run_dir.join("snapshots.sock"))?,
        };
        self.serve_snapshots(snapshots, tasks, stop);
        let mesh_closed = self.serve_mesh(settings, tasks, stop);
        self.serve_admin(settings, mesh_closed, tasks, stop).await?;
        self.upkeep(tasks, stop);
        Ok(())
    }

    fn serve_snapshots(&self, listener: UnixListener, tasks: &TaskTracker, stop: &CancellationToken) {
        let interceptor: Arc<dyn Interceptor> = Arc::new(Intercept(Arc::clone(&self.layers)));
        tracing::info!(door = "snapshots", addr = ?listener.local_addr().ok(), "listening");
        let service = door::snapshots::service(Arc::clone(&self.snapshots), interceptor);
        let served = door::snapshots::serve(listener, service, stop.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(door = "snapshots", error = &error as &dyn std::error::Error, "door closed");
                stop.cancel();
            }
        });
    }

    /// Answers why the mesh door is closed, if it is.
    fn serve_mesh(
        &mut self,
        settings: &Settings,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Option<String> {
        let (identity, listener) = match (&self.identity, self.mesh_listener.take()) {
            (Ok(identity), Some(listener)) => (identity.clone(), listener),
            (Ok(_), None) => return Some("already served".to_owned()),
            (Err(error), _) => {
                let reason = door::chain_of(error.as_ref());
                if mesh_wanted(settings, &self.identity) {
                    tracing::warn!(reason, "the mesh port stays closed; this node serves itself");
                } else {
                    tracing::info!(reason, "the mesh port stays closed; this node serves itself");
                }
                return Some(reason);
            }
        };
        announce("mesh", &listener);
        let parts = door::peer::Parts {
            identity: identity.clone(),
            mesh: self.mesh.clone(),
            pulls: self.pulls.clone(),
        };
        tasks.spawn(door::peer::serve(listener, parts, stop.clone(), tasks.clone()));
        let mesh = self.mesh.clone();
        let stopped = stop.clone();
        tasks.spawn(async move { mesh.run(stopped).await });
        tasks.spawn(rotate(identity, stop.clone()));
        None
    }

    async fn serve_admin(
        &self,
        settings: &Settings,
        mesh_closed: Option<String>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let containerd_absent = Arc::default();
        tasks.spawn(watch_containerd(self.containerd.clone(), Arc::clone(&containerd_absent), stop.clone()));
        let report = Reporter {
            mesh: self.mesh.clone(),
            pulls: self.pulls.clone(),
            store: self.store.clone(),
            mesh_closed,
            mesh_wanted: mesh_wanted(settings, &self.identity),
            containerd_absent,
        };
        let parts = admin::Parts {
            metrics: Arc::clone(&self.metrics),
            report: Arc::new(report),
            pulls: self.pulls.clone(),
            origin: self.origin.clone(),
        };
        let address = settings.listen("admin.listen").expect("the key has a default");
        let http = sockets::listen(address, "admin.listen").await?;
        announce("admin", &http);
        let socket = sockets::open(&settings.path("node.run_dir").unwrap_or_default().join("admin.sock"))?;
        tasks.spawn(admin::serve_http(http, parts.clone(), stop.clone().cancelled_owned()));
        tasks.spawn(admin::serve_socket(socket, parts, stop.clone().cancelled_owned()));
        Ok(())
    }

    /// What happens again and again: limits of the store, pulls to forget, directories of removed snapshots.
    fn upkeep(self, tasks: &TaskTracker, stop: &CancellationToken) {
        tasks.spawn(Arc::clone(&self.snapshots).keep_clean(stop.clone()));
        let stop = stop.clone();
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(SWEEP_EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tick.tick() => {}
                }
                self.layers.sweep(Instant::now());
                let store = self.store.clone();
                let swept = tokio::task::spawn_blocking(move || store.sweep(SystemTime::now()));
                swept.await.expect("sweeping does not panic");
            }
        });
    }
}

/// Takes new certificates into use as they come.
async fn rotate(identity: Identity, stop: CancellationToken) {
    let mut tick = tokio::time::interval(RELOAD_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match identity.reload(SystemTime::now()) {
            Ok(true) => tracing::info!(name = identity.name(), "new certificate in use"),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the certificate files changed and cannot be used; the old certificate stays in use"
            ),
        }
    }
}

/// Says in one line when containerd goes and when it comes.
async fn watch_containerd(client: Client, absent: Arc<Mutex<Option<String>>>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    let mut before: Option<bool> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let reason = match client.version().await {
            Ok(version) => {
                if before != Some(true) {
                    tracing::info!(%version, "containerd answers");
                }
                None
            }
            Err(error) => {
                let reason = door::chain_of(&error);
                if before != Some(false) {
                    tracing::warn!(
                        reason,
                        "containerd does not answer yet; pulls go on without interception"
                    );
                }
                Some(reason)
            }
        };
        before = Some(reason.is_none());
        *absent.lock() = reason;
    }
}

fn announce(door: &str, listener: &TcpListener) {
    if let Ok(addr) = listener.local_addr() {
        tracing::info!(door, %addr, "listening");
    }
}

/// Whether the operator means this node to be in a mesh.
fn mesh_wanted(settings: &Settings, identity: &Result<Identity, Arc<IdentityError>>) -> bool {
    let absent = matches!(identity, Err(error) if matches!(**error, IdentityError::Absent { .. }));
    !absent || !settings.texts("mesh.members").is_empty()
}

/// The snapshots door asks the layers.
struct Intercept(Arc<Layers>);

#[async_trait::async_trait]
impl Interceptor for Intercept {
    async fn prepare(&self, request: &door::snapshots::Prepare) -> door::snapshots::Intercepted {
        let request = layer::Request {
            namespace: request.namespace.clone(),
            key: request.key.clone(),
            parent: request.parent.clone(),
            labels: request.labels.clone(),
            lease: request.lease.clone(),
            target: request.target.clone(),
        };
        match self.0.prepare(&request).await {
            layer::Answer::Mounts => door::snapshots::Intercepted::Pass,
            layer::Answer::AlreadyExists => door::snapshots::Intercepted::AlreadyExists,
        }
    }

    fn removed(&self, key: &str) {
        self.0.removed(key);
    }

    fn committed(&self, key: &str) {
        self.0.committed(key);
    }
}
