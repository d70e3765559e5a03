//! The doors, opened one after the other; the mesh door stays shut without a valid certificate.

use std::{path::Path, sync::Arc};

use tokio::net::UnixListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Settings,
    build::{Daemon, Entrance},
    gate::Gate,
    run::RunError,
    sockets,
    upkeep::{self, Upkept},
};
use crate::{
    door::{self, admin, cri, snapshots::Interceptor},
    layer::{self, Layers},
};

impl Daemon {
    /// Opens the doors. The mesh door stays shut without a valid certificate.
    pub(super) fn serve(
        self,
        entrance: Entrance,
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
        let gate = Gate {
            settings: settings.clone(),
            mesh: self.mesh.clone(),
            pulls: self.pulls.clone(),
            preheats: self.preheats.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            identity: None,
            door: Arc::clone(&self.reporter.mesh_door),
            reminded: None,
        };
        gate.begin(entrance);
        self.serve_admin(settings, tasks, stop)?;
        if settings.switch("containerd.cri_proxy") {
            self.serve_cri(&run_dir.join("cri.sock"), tasks, stop)?;
        }
        let daemon = self.serve_mirror(&run_dir, tasks)?;
        upkeep::start(daemon, tasks, stop);
        Ok(())
    }

    fn serve_mirror(self, run_dir: &Path, tasks: &TaskTracker) -> Result<Upkept, RunError> {
        let (mirror, listener) = self.mirror;
        sockets::announce("mirror", &listener);
        tasks.spawn(mirror.clone().serve_unix(sockets::open(&run_dir.join("mirror.sock"))?));
        tasks.spawn(mirror.serve_tcp(listener));
        Ok(Upkept { layers: self.layers, snapshots: self.snapshots, store: self.store, rates: self.rates })
    }

    fn serve_cri(
        &self,
        socket: &Path,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let listener = sockets::open(socket)?;
        tracing::info!(door = "cri", addr = %socket.display(), "listening");
        let parts = cri::Parts {
            containerd: self.containerd.address().into(),
            preheats: self.preheats.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(cri::serve(listener, parts));
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

    fn serve_admin(
        &self,
        settings: &Settings,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        tasks.spawn(upkeep::watch_containerd(
            self.containerd.clone(),
            self.store.clone(),
            Arc::clone(&self.reporter.containerd),
            stop.clone(),
        ));
        let parts = admin::Parts {
            metrics: Arc::clone(&self.metrics),
            report: Arc::new(self.reporter.clone()),
            rates: Arc::new(self.rates.clone()),
            pulls: self.pulls.clone(),
            preheats: self.preheats.clone(),
            token_file: settings.path("admin.token_file"),
            tasks: tasks.clone(),
            jobs: admin::Jobs::default(),
        };
        let address = settings.listen("admin.listen").expect("the key has a default");
        let http = sockets::listen(address, "admin.listen")?;
        sockets::announce("admin", &http);
        let socket = sockets::open(&settings.path("node.run_dir").unwrap_or_default().join("admin.sock"))?;
        tasks.spawn(admin::serve_http(http, parts.clone(), stop.clone().cancelled_owned()));
        tasks.spawn(admin::serve_socket(socket, parts, stop.clone().cancelled_owned()));
        Ok(())
    }
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
