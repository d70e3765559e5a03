//! A layer handed over to a containerd that discards layers, by a caller without a lease: ours keeps it until it is
//! unpacked, and no longer.

use std::fs;

use flotilla::wire::containerd::{
    services::snapshots::v1::{
        CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use tokio::runtime::Runtime;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::{
    lab::{Lab, containerd::Programs, image::Published, node::Node, samples, story::on_every_containerd},
    real_image::{
        chain_ids, discard_unpacked_layers, eventually, layers_counted, log, start_flotilla, stored,
    },
};

on_every_containerd!(a_lease_of_ours_lasts_until_the_layer_is_unpacked);

const REF: &str = "containerd.io/snapshot.ref";

/// What containerd keeps without an image that refers to it.
const GC_ROOT: &str = "containerd.io/gc.root";

/// A client of containerd's that unpacks by itself, and has no lease.
struct Caller {
    runtime: Runtime,
    client: SnapshotsClient<Channel>,
}

impl Caller {
    fn of(node: &Node) -> Self {
        let runtime = Runtime::new().unwrap();
        let socket = node.containerd.socket();
        let dial = async {
            Endpoint::try_from(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
        };
        let client = SnapshotsClient::new(runtime.block_on(dial));
        Self { runtime, client }
    }

    fn prepare(&mut self, key: &str, chain_id: &str) -> Vec<Mount> {
        let labels = [(REF, chain_id), (GC_ROOT, "2026-11-29T00:00:00Z")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (snapshotter, key) = ("flotilla".into(), key.into());
        let request = PrepareSnapshotRequest { snapshotter, key, labels, ..Default::default() };
        self.runtime.block_on(self.client.prepare(namespaced(request))).unwrap().into_inner().mounts
    }

    fn commit(&mut self, name: &str, key: &str) {
        let (snapshotter, name, key) = ("flotilla".into(), name.into(), key.into());
        let request = CommitSnapshotRequest { snapshotter, name, key, ..Default::default() };
        self.runtime.block_on(self.client.commit(namespaced(request))).unwrap();
    }

    fn remove(&mut self, key: &str) {
        let request = RemoveSnapshotRequest { snapshotter: "flotilla".into(), key: key.into() };
        self.runtime.block_on(self.client.remove(namespaced(request))).unwrap();
    }
}

fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    request
}

/// One layer that takes a while at the rate below.
fn image(lab: &Lab) -> Published {
    let noise = samples::noise(lab.images(), 600_000, 91).unwrap();
    lab.images().publish("slow/leased:v1", &[noise], &["/absent"]).unwrap()
}

/// Leases of ours, by what `ctr leases ls` says of them.
fn leases(node: &Node) -> Vec<String> {
    let listed = node.containerd.ctr(&["leases", "ls"]).unwrap();
    listed.lines().filter(|line| line.starts_with("flotilla-")).map(str::to_owned).collect()
}

/// Whether the layer outlives a collection.
fn is_kept(node: &Node, digest: &str) -> bool {
    node.containerd.ctr(&["content", "prune", "references"]).unwrap();
    node.content_size(digest).is_some()
}

/// containerd has unpacked the layer, or has given that up.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Committed,
    Removed,
}

fn a_lease_of_ours_lasts_until_the_layer_is_unpacked(lab: &Lab, containerd: Programs) {
    let image = image(lab);
    let mut node = lab.node(&containerd).alone().start().unwrap();
    discard_unpacked_layers(lab, &mut node);
    node.pull(&lab.name(&image.name)).unwrap();
    node.settings.set("registry", "origin_rate", "\"256KiB\"").text("containerd", "prepare_budget", "1ms");
    for (number, ending) in [Ending::Committed, Ending::Removed].into_iter().enumerate() {
        forgets_the_layer(lab, &mut node, &image);
        is_handed_over_under_a_lease(lab, &node, &image, (number, ending));
    }
}

/// containerd knows the image and has none of its layers; neither has Flotilla from now on.
fn forgets_the_layer(lab: &Lab, node: &mut Node, image: &Published) {
    let chain_id = &chain_ids(image)[0];
    let _collected_before = node.containerd.ctr(&["snapshots", "--snapshotter", "flotilla", "rm", chain_id]);
    node.flotilla().stop().unwrap();
    fs::remove_dir_all(lab.dir().join("n1/flotilla/data")).unwrap();
    let settings = node.settings.clone();
    node.flotilla().configure(&settings).unwrap();
    start_flotilla(node);
}

fn is_handed_over_under_a_lease(lab: &Lab, node: &Node, image: &Published, end: (usize, Ending)) {
    let (number, ending) = end;
    let (digest, chain_id) = (&image.layers[0].blob.digest, &chain_ids(image)[0]);
    assert!(!is_kept(node, digest) && stored(lab, node, image) == 0);
    let mut caller = Caller::of(node);
    let key = format!("extract-{number}-x {chain_id}");
    assert_eq!(caller.prepare(&key, chain_id).len(), 1, "it is handed over");
    let ours = leases(node);
    let name = [chain_id, digest].map(|digest| digest.trim_start_matches("sha256:")).join("-");
    assert!(
        matches!(&ours[..], [lease] if lease.contains(&name) && lease.contains("containerd.io/gc.expire=")),
        "{ours:?}\n{}",
        log(node)
    );
    eventually("the layer to be in containerd", || node.content_size(digest).is_some());
    assert!(is_kept(node, digest), "{ending:?}: the lease keeps it");
    match ending {
        Ending::Committed => caller.commit(chain_id, &key),
        Ending::Removed => caller.remove(&key),
    }
    eventually("the lease to be released", || leases(node).is_empty());
    eventually("the layer to go, since nothing keeps it any more", || !is_kept(node, digest));
    assert_eq!(layers_counted(node, "handed_over"), 1.0);
}
