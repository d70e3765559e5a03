//! A node: a containerd, and a Flotilla where the plan has one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Result,
    containerd::{self, Containerd, Programs, Snapshotter},
    cri::{Cri, Ran},
    flotilla::{Flotilla, Settings},
    lab_of,
    net::Namespace,
};

/// The mesh's port on every node.
pub(crate) const MESH_PORT: u16 = 7442;

/// How a node will be.
pub(crate) struct NodePlan {
    pub(crate) name: String,
    /// `<lab>/<name>`.
    pub(crate) dir: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) containerd: containerd::Settings,
    /// The client of `examples/cri.rs`.
    pub(crate) cri: PathBuf,
    /// Its network, where it is not the machine's.
    pub(crate) namespace: Option<Namespace>,
    /// The daemon and its settings, where it has one.
    pub(crate) flotilla: Option<(PathBuf, Settings)>,
}

impl NodePlan {
    /// The settings of a node's Flotilla that follow from its place: everything but members and
    /// certificate.
    pub(crate) fn settings(name: &str, dir: &Path, address: &str, hosts_dir: &Path) -> Settings {
        let mut settings = Settings::default();
        settings
            .text("node", "name", name)
            .path("node", "data_dir", &dir.join("flotilla/data"))
            .path("node", "run_dir", &dir.join("flotilla/run"))
            .path("containerd", "address", &dir.join("containerd/c.sock"))
            .path("containerd", "snapshot_root", &snapshot_root(dir))
            .text("mesh", "listen", &format!("{address}:{MESH_PORT}"))
            .text("mesh", "advertise", &format!("{address}:{MESH_PORT}"))
            .list("registry", "hosts_dir", &[hosts_dir.display().to_string()])
            .text("admin", "listen", "127.0.0.1:0")
            .text("mirror", "listen", "127.0.0.1:0")
            // A machine for tests may be fuller than a node; what a full one does is tested on disks of its own.
            .text("store", "keep_free", "1%");
        settings
    }

    /// The plugin as containerd is told of it.
    pub(crate) fn snapshotter(dir: &Path, annotations: bool) -> Snapshotter {
        let socket = dir.join("flotilla/run/snapshots.sock");
        Snapshotter::Flotilla { socket, root: snapshot_root(dir), annotations }
    }

    pub(crate) fn start(self) -> Result<Node> {
        let flotilla = match &self.flotilla {
            Some((program, settings)) => {
                let dir = self.dir.join("flotilla");
                Some(Flotilla::start(program, dir, settings, self.namespace.clone())?)
            }
            None => None,
        };
        let dir = self.dir.join("containerd");
        let containerd = Containerd::start(self.programs, dir, &self.containerd, self.namespace)?;
        let cri = Cri::new(&self.cri, containerd.socket(), lab_of(&self.dir));
        let network = containerd.namespace().cloned();
        let settings = self.flotilla.map(|(_, settings)| settings).unwrap_or_default();
        Ok(Node { name: self.name, containerd, flotilla, cri, network, settings })
    }
}

/// Where containerd 1.6 expects the snapshots of a plugin named flotilla, and every other is told.
fn snapshot_root(node: &Path) -> PathBuf {
    node.join("containerd/root/io.containerd.snapshotter.v1.flotilla")
}

/// A running node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) containerd: Containerd,
    flotilla: Option<Flotilla>,
    pub(crate) cri: Cri,
    /// Its network, where it is not the machine's.
    pub(crate) network: Option<Namespace>,
    /// What Flotilla was started with, to change and start it again.
    pub(crate) settings: Settings,
}

impl Node {
    /// The daemon, to stop it or to start it again.
    pub(crate) fn flotilla(&mut self) -> &mut Flotilla {
        self.flotilla.as_mut().expect("the plan of this node has a Flotilla")
    }

    /// Starts a Flotilla on a node that has none, in `dir`, with the node's settings.
    pub(crate) fn install(&mut self, program: &Path, dir: PathBuf) -> Result<()> {
        self.flotilla = Some(Flotilla::start(program, dir, &self.settings, self.network.clone())?);
        Ok(())
    }

    /// The daemon, if the plan has one.
    pub(crate) fn daemon(&self) -> Option<&Flotilla> {
        self.flotilla.as_ref()
    }

    /// Pulls through CRI.
    pub(crate) fn pull(&self, image: &str) -> Result<String> {
        self.cri.pull(image)
    }

    /// Runs a command in a container of the image through CRI.
    pub(crate) fn run(&self, image: &str, command: &[&str]) -> Result<Ran> {
        self.cri.run(image, command)
    }

    /// Asks `ctr image check` whether containerd has every blob of an image in CRI's namespace.
    pub(crate) fn is_complete(&self, image: &str) -> Result<bool> {
        let listed = self.containerd.ctr(&["images", "check", &format!("name=={image}")])?;
        let line = listed.lines().find(|line| line.contains(image));
        Ok(line.ok_or_else(|| format!("no {image} among:\n{listed}"))?.contains(" complete "))
    }

    /// Where a blob lies in containerd's content store.
    pub(crate) fn content_path(&self, digest: &str) -> PathBuf {
        let blobs = self.containerd.root().join("io.containerd.content.v1.content/blobs/sha256");
        blobs.join(digest.trim_start_matches("sha256:"))
    }

    /// The size in bytes of a blob in containerd's content store, if it is there.
    pub(crate) fn content_size(&self, digest: &str) -> Option<u64> {
        fs::metadata(self.content_path(digest)).ok().map(|meta| meta.len())
    }

    /// Leaves it running when this value goes.
    pub(crate) fn leave(self) {
        self.containerd.leave();
        self.flotilla.into_iter().for_each(Flotilla::leave);
    }
}
