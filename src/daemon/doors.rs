//! The doors, opened one after the other; the mesh door stays shut without a valid certificate.

use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Settings, build::Daemon, report::Reporter, run::RunError, sockets, upkeep};
use crate::{
    door::{self, admin, snapshots::Interceptor},
    identity::{Identity, IdentityError},
    layer::{self, Layers},
};

impl Daemon {
    /// Opens the doors. The mesh door stays shut without a valid certificate.
    pub(super) async fn serve(
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
        upkeep::start(self, tasks, stop);
        Ok(())
    }

    fn serve_snapshots(&self, listener: UnixListener, tasks: &TaskTracker, stop: &CancellationToken) {
        let interceptor: Arc<dyn Interceptor> = Arc::new(Intercept(Arc::clone(&self.layers)));
        if let Some(path) = listener.local_addr().ok().as_ref().and_then(|addr| addr.as_pathname()) {
            tracing::info!(door = "snapshots", addr = %path.display(), "listening");
        }
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
                let reason = crate::pull::chain_of(error.as_ref());
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
        tasks.spawn(upkeep::rotate(identity, stop.clone()));
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
        tasks.spawn(upkeep::watch_containerd(
            self.containerd.clone(),
            self.store.clone(),
            Arc::clone(&containerd_absent),
            stop.clone(),
        ));
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
