//! What a story is told with: a lab with a registry, and nodes with a containerd and a Flotilla each.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Result,
    containerd::{self, Containerd, Programs, Snapshotter},
    cri::{Cri, Ran},
    flotilla::{Flotilla, Settings},
    image::Images,
    place, process,
    registry::Registry,
    samples, sweep,
};

/// Runs a story on one series of containerd, or says why it is skipped.
pub(crate) fn tell(series: &str, story: fn(&Lab, Programs)) {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let Some(programs) = containerd::find(series) else {
        eprintln!("skipped: no containerd {series} here; cargo xtask setup gets it where it can");
        return;
    };
    story(&Lab::new().unwrap(), programs);
}

/// Makes a test of a story for each series of containerd.
macro_rules! on_every_containerd {
    ($($story:ident),+ $(,)?) => { $(
        mod $story {
            #[test]
            fn on_containerd_1_6() { crate::lab::story::tell("1.6", super::$story); }
            #[test]
            fn on_containerd_1_7() { crate::lab::story::tell("1.7", super::$story); }
            #[test]
            fn on_containerd_2_1() { crate::lab::story::tell("2.1", super::$story); }
            #[test]
            fn on_containerd_2_4() { crate::lab::story::tell("2.4", super::$story); }
        }
    )+ };
}
pub(crate) use on_every_containerd;

/// What this machine lacks for a lab.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("a lab mounts and makes namespaces, which takes root".into());
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let has = |program: &str| path.split(':').any(|folder| Path::new(folder).join(program).is_file());
    let lacking: Vec<&str> = ["runc", "docker-registry", "busybox"].into_iter().filter(|p| !has(p)).collect();
    (!lacking.is_empty()).then(|| format!("no {} here; cargo xtask setup installs it", lacking.join(", ")))
}

/// A registry, a folder for nodes, and nothing left behind.
pub(crate) struct Lab {
    dir: PathBuf,
    registry: RefCell<Registry>,
    images: Images,
    nodes: Cell<u8>,
    members: RefCell<Vec<String>>,
}

impl Lab {
    /// Starts a registry that has the sandbox image.
    pub(crate) fn new() -> Result<Lab> {
        sweep::leftovers();
        let dir = place::new_lab()?;
        let root = dir.join("blobs");
        let images = Images::new(&root);
        samples::pause(&images).map_err(|error| format!("making the sandbox image: {error}"))?;
        let registry = Registry::start(&root.display().to_string(), dir.join("registry"), None)?;
        let lab =
            Lab { dir, registry: registry.into(), images, nodes: Cell::new(0), members: RefCell::default() };
        lab.trust_plain_http(&lab.host())?;
        Ok(lab)
    }

    /// Where everything of this lab lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The registry's folder, to publish images in.
    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    /// The registry, for what its log says, or to stop it.
    pub(crate) fn registry(&self) -> std::cell::RefMut<'_, Registry> {
        self.registry.borrow_mut()
    }

    /// The registry's `host:port`.
    pub(crate) fn host(&self) -> String {
        self.registry.borrow().host().to_owned()
    }

    /// The full name of an image of the registry.
    pub(crate) fn name(&self, image: &str) -> String {
        self.registry.borrow().name(image)
    }

    /// The folder of `hosts.toml` files that containerds and Flotillas of this lab read.
    pub(crate) fn hosts_dir(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    /// Lets everybody in this lab speak plain HTTP to a host.
    pub(crate) fn trust_plain_http(&self, host: &str) -> Result<()> {
        let folder = self.hosts_dir().join(host);
        let text = format!(
            "server = \"http://{host}\"\n\n[host.\"http://{host}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n"
        );
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join("hosts.toml"), text))
            .map_err(|error| format!("writing hosts.toml in {}: {error}", folder.display()).into())
    }

    /// Plans a node; it starts with `Plan::start`.
    pub(crate) fn node(&self, programs: &Programs) -> Plan<'_> {
        let index = self.nodes.get() + 1;
        self.nodes.set(index);
        let name = format!("n{index}");
        let dir = self.dir.join(&name);
        let address = self.loopback_address(index);
        let mut settings = Settings::default();
        settings
            .text("node", "name", &name)
            .path("node", "data_dir", &dir.join("flotilla/data"))
            .path("node", "run_dir", &dir.join("flotilla/run"))
            .path("containerd", "address", &dir.join("containerd/c.sock"))
            .path("containerd", "snapshot_root", &snapshot_root(&dir))
            .text("mesh", "listen", &format!("{address}:7442"))
            .text("mesh", "advertise", &format!("{address}:7442"))
            .path("registry", "hosts_dir", &self.hosts_dir())
            .text("admin", "listen", "127.0.0.1:0");
        Plan {
            lab: self,
            name,
            programs: programs.clone(),
            address,
            settings,
            flotilla: true,
            certificate: true,
            annotations: false,
            more: String::new(),
        }
    }

    /// Starts `count` nodes with Flotilla that know each other.
    pub(crate) fn crowd(&self, programs: &Programs, count: usize) -> Result<Vec<Node>> {
        let plans: Vec<Plan<'_>> = (0..count).map(|_| self.node(programs)).collect();
        *self.members.borrow_mut() = plans.iter().map(|plan| format!("{}:7442", plan.address)).collect();
        plans.into_iter().map(Plan::start).collect()
    }

    /// All of 127.0.0.0/8 is loopback: each lab takes a net of its own by its process id, so that every
    /// node can have the port 7442.
    fn loopback_address(&self, index: u8) -> String {
        let name = self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut numbers =
            name.trim_start_matches(sweep::PREFIX).split('x').map(|n| n.parse().unwrap_or(0u32));
        let (process, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let lab = process.wrapping_mul(31).wrapping_add(count) % (254 * 256);
        format!("127.{}.{}.{index}", 1 + lab / 256, lab % 256)
    }

    /// Makes the node's certificate with `flotilla certs`, and the authority's with the first.
    fn certificate(&self, node: &str) -> Result<PathBuf> {
        super::certs::node(flotilla_program(), &self.dir.join("tls"), node)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("FLOTILLA_KEEP_LAB").is_some() {
            eprintln!("kept: {}", self.dir.display());
            return;
        }
        sweep::lab(&self.dir);
    }
}

/// The built daemon.
pub(crate) fn flotilla_program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_flotilla"))
}

/// A built example, which lies beside the daemon.
pub(crate) fn example(name: &str) -> PathBuf {
    flotilla_program().with_file_name("examples").join(name)
}

/// Where containerd 1.6 expects the snapshots of a plugin named flotilla, and every other is told.
fn snapshot_root(node: &Path) -> PathBuf {
    node.join("containerd/root/io.containerd.snapshotter.v1.flotilla")
}

/// How a node will be.
pub(crate) struct Plan<'lab> {
    lab: &'lab Lab,
    name: String,
    programs: Programs,
    address: String,
    settings: Settings,
    flotilla: bool,
    certificate: bool,
    annotations: bool,
    more: String,
}

impl Plan<'_> {
    /// containerd as it is, without Flotilla.
    pub(crate) fn stock(mut self) -> Self {
        self.flotilla = false;
        self
    }

    /// No certificate: the mesh stays closed.
    pub(crate) fn alone(mut self) -> Self {
        self.certificate = false;
        self
    }

    /// containerd passes on what it knows of each layer.
    pub(crate) fn with_annotations(mut self) -> Self {
        self.annotations = true;
        self
    }

    /// One of Flotilla's settings, its value as TOML writes it: `("store", "quota", "\"1GiB\"")`.
    pub(crate) fn setting(mut self, section: &str, key: &str, value: &str) -> Self {
        self.settings.set(section, key, value);
        self
    }

    /// More of containerd's settings file.
    pub(crate) fn containerd_setting(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    pub(crate) fn start(mut self) -> Result<Node> {
        let dir = self.lab.dir.join(&self.name);
        let mut flotilla = None;
        let mut snapshotter = Snapshotter::Overlayfs;
        if self.flotilla {
            if self.certificate {
                let tls = self.lab.certificate(&self.name)?;
                self.settings
                    .path("mesh", "ca", &tls.join("ca.pem"))
                    .path("mesh", "cert", &tls.join("node.pem"))
                    .path("mesh", "key", &tls.join("node-key.pem"));
            }
            self.settings.list("mesh", "members", &self.lab.members.borrow());
            let started = Flotilla::start(flotilla_program(), dir.join("flotilla"), &self.settings, None)?;
            flotilla = Some(started);
            let socket = dir.join("flotilla/run/snapshots.sock");
            snapshotter =
                Snapshotter::Flotilla { socket, root: snapshot_root(&dir), annotations: self.annotations };
        }
        let settings = containerd::Settings {
            snapshotter,
            sandbox_image: self.lab.name("lab/pause:1"),
            hosts_dir: self.lab.hosts_dir(),
            more: self.more,
        };
        let containerd = Containerd::start(self.programs, dir.join("containerd"), &settings, None)?;
        let cri = Cri::new(&example("cri"), containerd.socket(), &self.lab.dir);
        Ok(Node { name: self.name, containerd, flotilla, cri, settings: self.settings })
    }
}

/// A containerd, and a Flotilla where the plan has one.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) containerd: Containerd,
    flotilla: Option<Flotilla>,
    pub(crate) cri: Cri,
    /// What Flotilla was started with, to change and start it again.
    pub(crate) settings: Settings,
}

impl Node {
    pub(crate) fn flotilla(&mut self) -> &mut Flotilla {
        self.flotilla.as_mut().expect("the plan of this node has a Flotilla")
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

    /// The size in bytes of a blob in containerd's content store, if it is there.
    pub(crate) fn content_size(&self, digest: &str) -> Option<u64> {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.containerd.root().join("io.containerd.content.v1.content/blobs/sha256");
        fs::metadata(blobs.join(hex)).ok().map(|meta| meta.len())
    }

    /// A client of this node's containerd, such as crictl or nerdctl, by its path.
    pub(crate) fn client(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", self.containerd.socket().display()));
        command.env("CONTAINERD_ADDRESS", self.containerd.socket());
        command.env(process::MARK, self.lab_dir());
        command
    }

    fn lab_dir(&self) -> PathBuf {
        let socket = self.containerd.socket();
        socket.ancestors().find(|folder| super::is_lab(folder)).unwrap_or(&socket).to_owned()
    }
}
