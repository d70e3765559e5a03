//! A snapshotter under test and a client of it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use flotilla::{
    door::snapshots::{Intercepted, Interceptor, Prepare, serve, service},
    snapshot::Snapshots,
    wire::containerd::{
        services::snapshots::v1::{self as api, snapshots_client::SnapshotsClient},
        types::Mount,
    },
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::Notify};
use tokio_stream::StreamExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use super::containerd::Containerd;

pub(crate) type Answer<T> = Result<T, Status>;

/// Keeps a snapshot from containerd's garbage collection.
pub(crate) const GC_ROOT: &str = "containerd.io/gc.root";

/// Says yes to targets in its list and writes down what it hears.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) present: Mutex<Vec<String>>,
    pub(crate) asked: Mutex<Vec<Prepare>>,
    pub(crate) heard: Mutex<Vec<String>>,
    /// While set, every Prepare with a target waits.
    pub(crate) slow: AtomicBool,
    pub(crate) waiting: Notify,
}

#[async_trait::async_trait]
impl Interceptor for Recorder {
    async fn prepare(&self, request: &Prepare) -> Intercepted {
        self.asked.lock().push(request.clone());
        self.waiting.notify_one();
        if self.slow.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        match &request.target {
            Some(target) if self.present.lock().contains(target) => Intercepted::AlreadyExists,
            _ => Intercepted::Pass,
        }
    }

    fn removed(&self, key: &str) {
        self.heard.lock().push(format!("removed {key}"));
    }

    fn committed(&self, key: &str) {
        self.heard.lock().push(format!("committed {key}"));
    }
}

/// A running snapshotter, a client for it (or for the containerd before it) and a place to play.
pub(crate) struct Plugin {
    pub(crate) dir: TempDir,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) containerd: Option<Containerd>,
    client: SnapshotsClient<Channel>,
    /// Where the client is connected.
    socket: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
    names: AtomicUsize,
}

impl Plugin {
    /// Spoken to on its own socket.
    pub(crate) async fn direct() -> Self {
        // Short, because 128 of its paths have to fit into one page of mount options.
        let dir = tempfile::Builder::new().prefix("f").rand_bytes(5).tempdir().unwrap();
        let snapshots = Arc::new(Snapshots::open(&dir.path().join("r")).unwrap());
        let recorder = Arc::new(Recorder::default());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let socket = dir.path().join("flotilla.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let service = service(snapshots.clone(), recorder.clone());
        tasks.spawn(serve(listener, service, stop.clone()));
        tasks.spawn(snapshots.clone().keep_clean(stop.clone()));
        let client = SnapshotsClient::new(dial(&socket).await);
        let names = AtomicUsize::new(0);
        Self { dir, snapshots, recorder, containerd: None, client, socket, stop, tasks, names }
    }

    /// Spoken to through a real containerd; `None` where there is none.
    pub(crate) async fn through_containerd() -> Option<Self> {
        let mut plugin = Self::direct().await;
        let containerd = Containerd::start(plugin.dir.path()).await?;
        plugin.socket = containerd.socket.clone();
        plugin.client = SnapshotsClient::new(dial(&plugin.socket).await);
        plugin.containerd = Some(containerd);
        Some(plugin)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    /// An empty directory to mount on or to build in.
    pub(crate) fn place(&self) -> PathBuf {
        let path = self.dir.path().join(self.name("place"));
        std::fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        self.client.clone()
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.prepare_with(key, parent, rooted(&[])).await
    }

    pub(crate) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Answer<Vec<Mount>> {
        let (snapshotter, key, parent) = ("flotilla".into(), key.into(), parent.into());
        let request = api::PrepareSnapshotRequest { snapshotter, key, parent, labels };
        Ok(self.client().prepare(namespaced(request)).await?.into_inner().mounts)
    }

    pub(crate) async fn view(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.view_with(key, parent, rooted(&[])).await
    }

    pub(crate) async fn view_with(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Answer<Vec<Mount>> {
        let (snapshotter, key, parent) = ("flotilla".into(), key.into(), parent.into());
        let request = api::ViewSnapshotRequest { snapshotter, key, parent, labels };
        Ok(self.client().view(namespaced(request)).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let request = api::MountsRequest { snapshotter: "flotilla".into(), key: key.into() };
        Ok(self.client().mounts(namespaced(request)).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str) -> Answer<()> {
        self.commit_with(name, key, "", rooted(&[])).await
    }

    pub(crate) async fn commit_with(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Answer<()> {
        let (snapshotter, key, name) = ("flotilla".into(), key.into(), name.into());
        let request = api::CommitSnapshotRequest { snapshotter, key, name, labels, parent: parent.into() };
        self.client().commit(namespaced(request)).await.map(|_| ())
    }

    pub(crate) async fn remove(&self, key: &str) -> Answer<()> {
        let request = api::RemoveSnapshotRequest { snapshotter: "flotilla".into(), key: key.into() };
        self.client().remove(namespaced(request)).await.map(|_| ())
    }

    pub(crate) async fn stat(&self, key: &str) -> Answer<api::Info> {
        let request = api::StatSnapshotRequest { snapshotter: "flotilla".into(), key: key.into() };
        Ok(self.client().stat(namespaced(request)).await?.into_inner().info.unwrap())
    }

    /// Over a connection of its own that ends with the call.
    pub(crate) async fn stat_as_another_client(&self, key: &str) -> Answer<api::Info> {
        let mut client = SnapshotsClient::new(dial(&self.socket).await);
        let request = api::StatSnapshotRequest { snapshotter: "flotilla".into(), key: key.into() };
        Ok(client.stat(namespaced(request)).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn update(&self, info: api::Info, mask: &[&str]) -> Answer<api::Info> {
        let paths = mask.iter().map(|&path| path.to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request =
            api::UpdateSnapshotRequest { snapshotter: "flotilla".into(), info: Some(info), update_mask };
        Ok(self.client().update(namespaced(request)).await?.into_inner().info.unwrap())
    }

    /// The messages of a listing.
    pub(crate) async fn pages(&self, filters: &[&str]) -> Answer<Vec<Vec<api::Info>>> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = api::ListSnapshotsRequest { snapshotter: "flotilla".into(), filters };
        let mut stream = self.client().list(namespaced(request)).await?.into_inner();
        let mut pages = Vec::new();
        while let Some(page) = stream.next().await {
            pages.push(page?.info);
        }
        Ok(pages)
    }

    pub(crate) async fn list(&self, filters: &[&str]) -> Answer<Vec<api::Info>> {
        Ok(self.pages(filters).await?.concat())
    }

    pub(crate) async fn usage(&self, key: &str) -> Answer<(i64, i64)> {
        let request = api::UsageRequest { snapshotter: "flotilla".into(), key: key.into() };
        let usage = self.client().usage(namespaced(request)).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) async fn cleanup(&self) -> Answer<()> {
        let request = api::CleanupRequest { snapshotter: "flotilla".into() };
        self.client().cleanup(namespaced(request)).await.map(|_| ())
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

async fn dial(socket: &Path) -> Channel {
    Endpoint::try_from(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

/// containerd's own service wants the header; the plugin takes it as a hint.
fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "testsuite".parse().unwrap());
    request
}

/// `labels` and the one that keeps containerd from collecting the snapshot.
pub(crate) fn rooted(labels: &[(&str, &str)]) -> HashMap<String, String> {
    let root = [(GC_ROOT, "2026-11-22T00:00:00Z")];
    root.iter().chain(labels).map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
