//! All modules, made from the settings and handed to each other.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Settings, modules, rates::Rates, report::Reporter, run::RunError, sockets};
use crate::{
    containerd::Client,
    door::registry::{self, Mirror, Visits},
    identity::{self, Identity, IdentityError},
    layer::{
        self, Layers,
        adopt::{self, AdoptParts},
        hold::{self, Holder},
        intercept::Catalog,
    },
    mesh::Mesh,
    oci::Repository,
    origin::Origin,
    preheat::{self, Preheats},
    pull::{self, Pulls},
    snapshot::Snapshots,
    store::Store,
};

/// Makes of the settings all that a start makes of them before it opens anything.
///
/// # Errors
/// `flotilla serve` would not start; why.
pub fn check(settings: &Settings) -> Result<(), RunError> {
    modules::store(settings, &settings.path("node.data_dir").unwrap_or_default())?;
    modules::mirror(settings).map_err(RunError::Proxy)?;
    Origin::new(modules::origin(settings, Vec::new())?).map_err(RunError::Origin)?;
    modules::mesh(settings, None, None)?;
    Ok(())
}

/// All modules, wired.
pub(super) struct Daemon {
    pub(super) metrics: Arc<Registry>,
    pub(super) store: Store,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) mesh: Mesh,
    pub(super) rates: Rates,
    pub(super) pulls: Pulls,
    pub(super) preheats: Preheats,
    pub(super) layers: Arc<Layers>,
    pub(super) containerd: Client,
    pub(super) reporter: Reporter,
    /// The mirror, and where it is to listen.
    pub(super) mirror: (Mirror, TcpListener),
}

/// This node's certificate and the mesh door's listener, bound already, since members are told its port.
pub(super) type Entrance = Result<(Identity, TcpListener), IdentityError>;

/// What every module is built with.
pub(super) struct Build<'a> {
    pub(super) settings: &'a Settings,
    pub(super) tasks: &'a TaskTracker,
    pub(super) stop: &'a CancellationToken,
}

impl Build<'_> {
    pub(super) fn daemon(&self) -> Result<(Daemon, Entrance), RunError> {
        let mut metrics = Registry::default();
        let store = self.store()?;
        let snapshots = self.snapshots()?;
        let mirror_door = self.mirror_door()?;
        let own_doors = mirror_door.local_addr().into_iter().collect();
        let origin = Origin::new(modules::origin(self.settings, own_doors)?).map_err(RunError::Origin)?;
        let (mesh, entrance) = self.mesh()?;
        let rates = Rates::new(modules::rates(self.settings), mesh.clone(), origin.clone());
        let pulls = Pulls::new(pull::Parts {
            store: store.clone(),
            origin: origin.clone(),
            mesh: mesh.clone(),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
            metrics: pull::Metrics::register(&mut metrics),
            settings: modules::pulls(self.settings),
        });
        let containerd = Client::new(&self.settings.path("containerd.address").unwrap_or_default());
        let preheats = Preheats::new(preheat::Parts {
            origin: origin.clone(),
            pulls: pulls.clone(),
            mesh: mesh.clone(),
            containerd: containerd.clone(),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
        });
        let visits = Visits::default();
        let made = Made {
            containerd: &containerd,
            store: &store,
            snapshots: &snapshots,
            pulls: &pulls,
            visits: &visits,
        };
        let layers = self.layers(&made, layer::Metrics::register(&mut metrics));
        let parts = registry::Parts {
            origin,
            pulls: pulls.clone(),
            store: store.clone(),
            metrics: registry::Metrics::register(&mut metrics),
            visits,
        };
        let mirror = self.mirror(parts)?;
        let reporter = Reporter::new(mesh.clone(), pulls.clone(), store.clone());
        metrics.register_collector(Box::new(reporter.clone()));
        let (metrics, mirror) = (Arc::new(metrics), (mirror, mirror_door));
        let daemon = Daemon {
            metrics,
            store,
            snapshots,
            mesh,
            rates,
            pulls,
            preheats,
            layers,
            containerd,
            reporter,
            mirror,
        };
        Ok((daemon, entrance))
    }

    /// Bound before registries are asked, who must not be this node.
    fn mirror_door(&self) -> Result<TcpListener, RunError> {
        let address = self.settings.listen("mirror.listen").expect("the key has a default");
        Ok(sockets::listen(address, "mirror.listen")?)
    }

    fn mirror(&self, parts: registry::Parts) -> Result<Mirror, RunError> {
        let settings = modules::mirror(self.settings).map_err(RunError::Proxy)?;
        Ok(Mirror::new(parts, settings, self.tasks.clone(), self.stop.clone()))
    }

    fn store(&self) -> Result<Store, RunError> {
        let path = self.settings.path("node.data_dir").unwrap_or_default();
        let store = Store::open(modules::store(self.settings, &path)?);
        store.map_err(|source| RunError::Store { path, source })
    }

    fn snapshots(&self) -> Result<Arc<Snapshots>, RunError> {
        let path = self.settings.path("containerd.snapshot_root").unwrap_or_default();
        let snapshots = Snapshots::open_with(modules::snapshots(self.settings, &path));
        snapshots.map(Arc::new).map_err(|source| RunError::Snapshots { path, source })
    }

    fn mesh(&self) -> Result<(Mesh, Entrance), RunError> {
        let entrance = match identity::load(&modules::identity(self.settings), SystemTime::now()) {
            Ok(identity) => {
                let listener = sockets::listen(modules::mesh_listen(self.settings), "mesh.listen")?;
                Ok((identity, listener))
            }
            Err(error) => Err(error),
        };
        let (identity, listener) =
            entrance.as_ref().map(|(identity, listener)| (identity, listener)).ok().unzip();
        let bound = listener.and_then(|listener| listener.local_addr().ok());
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let generation = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
        let settings = modules::mesh(self.settings, identity, bound)?;
        Ok((Mesh::new(settings, identity.cloned(), generation), entrance))
    }

    fn layers(&self, made: &Made<'_>, metrics: layer::Metrics) -> Arc<Layers> {
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        adopt::start(AdoptParts {
            containerd: made.containerd.clone(),
            store: made.store.clone(),
            pulls: made.pulls.clone(),
            metrics: metrics.clone(),
            namespaces: self.settings.texts("containerd.namespaces"),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let limits = hold::Limits::default();
        let (holder, endings) = Holder::new(made.containerd.clone(), tasks.clone(), stop.clone(), limits);
        let parts = layer::Parts {
            containerd: made.containerd.clone(),
            snapshots: Arc::clone(made.snapshots),
            store: made.store.clone(),
            pulls: made.pulls.clone(),
            catalog: Arc::new(Catalog::new(made.containerd.clone())),
            holder,
            mirror: Arc::new(Visited(made.visits.clone())),
            tasks,
            stop,
            metrics,
        };
        let layers = Arc::new(Layers::new(parts, modules::layers(self.settings)));
        self.tasks.spawn(Arc::clone(&layers).watch_holds(endings));
        layers
    }
}

/// What layers are made with.
struct Made<'a> {
    containerd: &'a Client,
    store: &'a Store,
    snapshots: &'a Arc<Snapshots>,
    pulls: &'a Pulls,
    visits: &'a Visits,
}

/// What containerd has pulled through the mirror lately, for the layers.
struct Visited(Visits);

impl layer::Mirror for Visited {
    fn is_used_for(&self, repositories: &[Repository]) -> bool {
        self.0.include(repositories, Instant::now())
    }
}
