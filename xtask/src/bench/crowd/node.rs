//! One node of a crowd: how it comes to be, its client, what it ends with.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    fault::Part,
    nodes::{Plan, Way},
};
use crate::{
    gate::at_gate,
    lab::{
        Result, certs,
        containerd::{self, Containerd, Snapshotter},
        cri::Cri,
        flotilla::{Flotilla, Metrics},
        lab_of,
        net::Namespace,
        node::{MESH_PORT, NodePlan},
        process::{MARK, Process, output},
        registry::{self, Registry},
    },
    shell::{quiet, workspace},
};

/// The program under test, built with optimisation.
pub fn flotilla_program() -> PathBuf {
    workspace().join("target/release/flotilla")
}

/// A client or a helper, which is not measured.
pub fn example(name: &str) -> PathBuf {
    workspace().join("target/debug/examples").join(name)
}

/// A node.
pub struct Member {
    pub name: String,
    pub part: Part,
    dir: PathBuf,
    pub daemon: Option<Flotilla>,
    containerd: Option<(Containerd, Cri)>,
    network: Namespace,
    /// The liar before it, or the proxy between it and the registry.
    _helper: Option<Process>,
}

/// Where a node comes to be.
pub struct Place<'a> {
    /// `<lab>/<name>`.
    pub dir: PathBuf,
    pub name: String,
    pub network: Namespace,
    pub registry: &'a Registry,
    pub part: Part,
    pub zone: Option<&'static str>,
    pub with_containerd: bool,
}

impl Place<'_> {
    /// `seeds` are the members' addresses.
    pub fn start(self, plan: &Plan, seeds: &[String]) -> Result<Member> {
        fs::create_dir_all(&self.dir)
            .map_err(|error| format!("making the folder {}: {error}", self.dir.display()))?;
        // Straight from the registry nothing goes wrong: what it is like without Flotilla is known.
        let part = if plan.way == Way::Flotilla { self.part } else { Part::Sound };
        let misleading = (part == Part::MisledReader).then(|| self.mislead()).transpose()?;
        let daemon = (plan.way == Way::Flotilla).then(|| self.daemon(seeds)).transpose()?;
        let lying = (part == Part::LyingRelay).then(|| self.lie()).transpose()?;
        let containerd = self.with_containerd.then(|| self.containerd(plan)).transpose()?;
        let Place { dir, name, network, .. } = self;
        Ok(Member { name, part, dir, daemon, containerd, network, _helper: misleading.or(lying) })
    }

    fn lab(&self) -> &Path {
        lab_of(&self.dir)
    }

    fn hosts_dir(&self) -> PathBuf {
        let own = self.dir.join("certs.d");
        if self.part == Part::MisledReader { own } else { self.lab().join("certs.d") }
    }

    fn daemon(&self, seeds: &[String]) -> Result<Flotilla> {
        let program = flotilla_program();
        let address = self.network.address();
        let tls = certs::node(&program, &self.lab().join("tls"), &self.name, &address)?;
        let mut settings = NodePlan::settings(&self.name, &self.dir, &address, &self.hosts_dir());
        settings
            .list("mesh", "members", seeds)
            .path("mesh", "ca", &tls.join("ca.pem"))
            .path("mesh", "cert", &tls.join("node.pem"))
            .path("mesh", "key", &tls.join("node-key.pem"))
            // All nodes' blobs share one file system, a tenth of which is less than they take.
            .text("store", "quota", "4GiB")
            .text("store", "keep_free", "1%");
        if let Some(zone) = self.zone {
            settings.text("node", "zone", zone);
        }
        if self.part == Part::LyingRelay {
            settings.text("mesh", "listen", &self.beside());
        }
        Flotilla::start(&program, self.dir.join("flotilla"), &settings, Some(self.network.clone()))
    }

    /// Where the daemon is while the liar has its address.
    fn beside(&self) -> String {
        format!("{}:{}", self.network.address(), MESH_PORT + 1)
    }

    fn lie(&self) -> Result<Process> {
        let at = format!("{}:{MESH_PORT}", self.network.address());
        let mut liar = self.faults();
        liar.args(["lie", "--name", &self.name, "--listen", &at, "--daemon", &self.beside(), "--tls"]);
        liar.arg(self.lab().join("tls"));
        let liar = Process::start("liar", liar, &self.dir.join("liar.log"), self.lab())?;
        liar.wait_for("listening on ")?;
        Ok(liar)
    }

    fn mislead(&self) -> Result<Process> {
        let mut proxy = self.faults();
        proxy.args(["mislead", "--listen", "127.0.0.1:0", "--registry", self.registry.host()]);
        let proxy = Process::start("proxy", proxy, &self.dir.join("proxy.log"), self.lab())?;
        let line = proxy.wait_for("listening on ")?;
        let address = line.trim_start_matches("listening on ");
        registry::lead_to(&self.hosts_dir(), self.registry.host(), address)?;
        Ok(proxy)
    }

    fn faults(&self) -> Command {
        self.network.command(&example("lab_faults").display().to_string())
    }

    fn containerd(&self, plan: &Plan) -> Result<(Containerd, Cri)> {
        let snapshotter = match plan.way {
            Way::Direct => Snapshotter::Overlayfs,
            Way::Flotilla => NodePlan::snapshotter(&self.dir, false),
        };
        let settings = containerd::Settings {
            snapshotter,
            sandbox_image: self.registry.name("lab/pause:1"),
            hosts_dir: self.lab().join("certs.d"),
            more: String::new(),
        };
        let (programs, dir) = (plan.programs.clone(), self.dir.join("containerd"));
        let containerd = Containerd::start(programs, dir, &settings, Some(self.network.clone()))?;
        let cri = Cri::new(&example("cri"), containerd.socket(), self.lab());
        Ok((containerd, cri))
    }
}

impl Member {
    /// Pulls the image when it is let through its gate.
    pub fn client(&self, image: &str) -> Command {
        let mut command = match (&self.containerd, &self.daemon) {
            (Some((_, cri)), _) => cri.command(&["pull", "--gate", image]),
            (None, Some(daemon)) => at_gate(&daemon.command(&["pull", "--json", image])),
            (None, None) => {
                let mut puller = self.network.command(&example("lab_puller").display().to_string());
                puller.arg("--into").arg(self.dir.join("pulled")).arg(image);
                at_gate(&puller)
            }
        };
        command.env(MARK, lab_of(&self.dir));
        command
    }

    pub fn has_containerd(&self) -> bool {
        self.containerd.is_some()
    }

    /// The daemon's process, unless there is none any more.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.daemon.as_mut()?.process().ok()
    }

    /// Its machine is gone: nothing comes from it any more, no refusal either.
    pub fn disconnect(&self) -> Result<()> {
        self.network.connected(false)
    }

    /// Has the image before the crowd comes.
    pub fn have(&self, image: &str) -> Result<()> {
        let daemon = self.daemon.as_ref().ok_or("no daemon that keeps anything")?;
        output(daemon.command(&["pull", image])).map(|_| ())
    }

    /// Has the image before the crowd comes, and a few wrong bytes in the copy of a layer.
    pub fn rot(&self, image: &str, digest: &str) -> Result<()> {
        self.have(image)?;
        let path = self.stored(digest);
        flip(&path).map_err(|error| format!("spoiling {}: {error}", path.display()).into())
    }

    /// The daemon's metrics, unless none runs any more.
    pub fn metrics(&self) -> Option<Metrics> {
        self.daemon.as_ref()?.metrics().ok()
    }

    /// What is wrong with this node's copies of a blob, the bytes of all of which are read.
    pub fn wrong(&self, digest: &str) -> Vec<String> {
        let hex = digest.trim_start_matches("sha256:");
        let mut copies = Vec::new();
        if let Some((containerd, _)) = &self.containerd {
            copies.push(containerd.root().join("io.containerd.content.v1.content/blobs/sha256").join(hex));
        }
        let stored = self.stored(digest);
        match (&self.daemon, &self.containerd) {
            (Some(_), None) => copies.push(stored),
            // containerd's copy is all that must be there.
            (Some(_), Some(_)) if stored.exists() => copies.push(stored),
            (None, None) => copies.push(self.dir.join("pulled").join(hex)),
            (_, Some(_)) => {}
        }
        let says = |why: String| format!("{}: {why}", self.name);
        copies.into_iter().filter_map(|copy| is_wrong(&copy, hex)).map(says).collect()
    }

    /// Where this node's Flotilla keeps a blob.
    fn stored(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.dir.join("flotilla/data/blobs/sha256");
        blobs.join(hex.get(..2).unwrap_or_default()).join(hex).join("data")
    }
}

/// Three bytes of a file become others.
fn flip(path: &Path) -> std::io::Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    for quarter in 1..=3 {
        let at = len / 4 * quarter;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&byte.map(|byte| byte ^ 0x10), at)?;
    }
    Ok(())
}

fn is_wrong(copy: &Path, hex: &str) -> Option<String> {
    if !copy.exists() {
        return Some(format!("{} is not there", copy.display()));
    }
    match quiet(Command::new("sha256sum").arg(copy)) {
        Ok(sum) if sum.starts_with(hex) => None,
        Ok(sum) => Some(format!("wrong bytes: {sum}")),
        Err(failure) => Some(failure.to_string()),
    }
}
