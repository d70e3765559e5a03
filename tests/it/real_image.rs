//! What the stories on real parts ask of an image that was pulled, and of the node that pulled it.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

use crate::lab::{Lab, image::Published, node::Node, process::PATIENCE};

/// How often a story looks again for what has no event.
const LOOK_AFTER: Duration = Duration::from_millis(50);

/// An image of the lab's registry as one node has it.
pub(crate) struct Pulled<'a> {
    lab: &'a Lab,
    node: &'a Node,
    image: &'a Published,
}

impl<'a> Pulled<'a> {
    pub(crate) fn new(lab: &'a Lab, node: &'a Node, image: &'a Published) -> Self {
        Self { lab, node, image }
    }

    fn name(&self) -> String {
        self.lab.name(&self.image.name)
    }

    /// Each layer once, however often the image has it.
    pub(crate) fn blobs(&self) -> Vec<(String, u64)> {
        let mut blobs: Vec<_> =
            self.image.layers.iter().map(|layer| (layer.blob.digest.clone(), layer.blob.size)).collect();
        blobs.sort();
        blobs.dedup();
        blobs
    }

    /// Bytes of each layer that the registry sent, and that all of them went to Flotilla.
    pub(crate) fn left_the_registry_once(&self) -> &Self {
        self.left_the_registry(|digest, size, sent, agents| {
            assert!(agents.iter().all(|agent| agent.starts_with("flotilla/")), "{digest}: {agents:?}");
            assert_eq!(sent, size, "bytes of {digest} that left the registry");
        });
        self
    }

    /// No layer was sent to containerd.
    pub(crate) fn containerd_fetched_none(&self) -> &Self {
        self.left_the_registry(|digest, _, _, agents| {
            assert!(agents.iter().all(|agent| agent.starts_with("flotilla/")), "{digest}: {agents:?}");
        });
        self
    }

    /// containerd has sent for every layer by itself.
    pub(crate) fn containerd_fetched_all(&self) -> &Self {
        self.left_the_registry(|digest, _, _, agents| {
            assert!(agents.iter().any(|agent| agent.starts_with("containerd/")), "{digest}: {agents:?}");
        });
        self
    }

    fn left_the_registry(&self, check: impl Fn(&str, u64, u64, &[String])) {
        // From any repository: what images share is fetched from one of them.
        let requests = self.lab.registry().requests();
        let reads: Vec<_> = requests.iter().filter(|request| request.method == "GET").collect();
        for (digest, size) in self.blobs() {
            let of_it: Vec<_> = reads.iter().filter(|read| read.uri.contains(&digest)).collect();
            let agents: Vec<String> = of_it.iter().map(|read| read.user_agent.clone()).collect();
            check(&digest, size, of_it.iter().map(|read| read.body_bytes).sum(), &agents);
        }
    }

    /// containerd's content store has every blob.
    pub(crate) fn is_complete(&self) -> &Self {
        assert!(self.node.is_complete(&self.name()).unwrap(), "{}", self.name());
        for (digest, size) in self.blobs() {
            assert_eq!(self.node.content_size(&digest), Some(size), "{digest} in containerd");
        }
        self
    }

    /// containerd's copy and ours are one file with two names. Adoption may still be under way.
    pub(crate) fn is_one_copy(&self) -> &Self {
        for (digest, _) in self.blobs() {
            let ours = stored_path(self.lab, self.node, &digest);
            let theirs = self.node.content_path(&digest);
            eventually(&format!("one copy of {digest}"), || {
                let metas = (fs::metadata(&ours), fs::metadata(&theirs));
                matches!(metas, (Ok(ours), Ok(theirs)) if ours.ino() == theirs.ino() && ours.nlink() == 2)
            });
        }
        self
    }

    /// A container of the image runs.
    pub(crate) fn runs(&self, command: &[&str]) -> String {
        let ran = self.node.run(&self.name(), command).unwrap();
        assert_eq!(ran.exit_code, 0, "{}: {}", self.image.name, ran.output);
        ran.output
    }

    /// Pulled without containerd's doing, whole, and good to run.
    pub(crate) fn was_brought_by_flotilla(&self) -> &Self {
        self.left_the_registry_once().is_complete().is_one_copy();
        self.runs(&["/bin/echo", "it runs"]);
        self
    }
}

/// Where the store of a node keeps a blob.
pub(crate) fn stored_path(lab: &Lab, node: &Node, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    let blobs = lab.dir().join(&node.name).join("flotilla/data/blobs/sha256");
    blobs.join(&hex[..2]).join(hex).join("data")
}

/// One bit of a file turns at `place`.
pub(crate) fn rots(file: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
}

/// Every blob of the image that lies in the node's store.
pub(crate) fn stored(lab: &Lab, node: &Node, image: &Published) -> usize {
    let digests = image.layers.iter().map(|layer| &layer.blob.digest);
    digests.filter(|digest| stored_path(lab, node, digest).exists()).count()
}

/// How many layers ended so, for any reason.
pub(crate) fn layers_counted(node: &Node, outcome: &str) -> f64 {
    let label = format!("outcome=\"{outcome}\"");
    node.daemon().unwrap().metrics().unwrap().sum("flotilla_layers_total", &[&label])
}

/// The chain IDs of an image's layers, the lowest first.
pub(crate) fn chain_ids(image: &Published) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for layer in &image.layers {
        let id = match chain.last() {
            None => layer.diff_id.clone(),
            Some(below) => {
                let hash = Sha256::digest(format!("{below} {}", layer.diff_id).as_bytes());
                format!("sha256:{}", hex::encode(hash))
            }
        };
        chain.push(id);
    }
    chain
}

/// Names of the snapshots that a namespace of containerd has of our snapshotter.
pub(crate) fn snapshots(node: &Node, namespace: &str) -> String {
    node.containerd.ctr_in(namespace, &["snapshots", "--snapshotter", "flotilla", "ls"]).unwrap()
}

/// Waits for what has no event, and fails after a time that only a hang takes.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        thread::park_timeout(LOOK_AFTER);
    }
}

/// The cgroup of the lab's containers, which goes with the lab.
pub(crate) fn cgroup(lab: &Lab) -> String {
    format!("/{}", lab.short_name())
}

/// Starts the node's containerd again as one that forgets layers once they are unpacked.
pub(crate) fn discard_unpacked_layers(lab: &Lab, node: &mut Node) {
    let config = lab.dir().join(&node.name).join("containerd/config.toml");
    let snapshotter = "snapshotter = \"flotilla\"";
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replacen(snapshotter, &format!("{snapshotter}\n  discard_unpacked_layers = true"), 1);
    node.containerd.stop().unwrap();
    fs::write(&config, text).unwrap();
    node.containerd.start_again().unwrap();
}

/// A pull through CRI that goes on in a process of its own. Killed when dropped.
pub(crate) struct Pulling(Option<Child>);

impl Pulling {
    pub(crate) fn start(node: &Node, image: &str) -> Self {
        let mut pull = node.cri.command(&["pull", image]);
        Self(Some(pull.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for its end; what it said if it failed.
    pub(crate) fn end(mut self) -> Result<(), String> {
        let ended = self.0.take().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        if ended.status.success() { Ok(()) } else { Err(said) }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        if let Some(mut client) = self.0.take() {
            client.kill().unwrap();
            client.wait().unwrap();
        }
    }
}

/// What the node's Flotilla has logged so far, without colours.
pub(crate) fn log(node: &Node) -> String {
    fs::read_to_string(node.daemon().unwrap().log()).unwrap()
}

/// Starts a stopped daemon, and waits until containerd, which backs off for seconds, has found it again. Where systemd
/// holds the socket there is no such gap.
pub(crate) fn start_flotilla(node: &mut Node) {
    node.flotilla().start_again().unwrap();
    let snapshots = ["snapshots", "--snapshotter", "flotilla"];
    let ask = |what: &str| node.containerd.ctr(&[&snapshots[..], &[what, "probe"]].concat());
    eventually("containerd to find Flotilla again", || ask("prepare").is_ok());
    ask("rm").unwrap();
}
