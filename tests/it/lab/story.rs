//! What a story is told with: a lab with a registry, and nodes with a containerd and a Flotilla each.

use std::{
    cell::{Cell, RefCell, RefMut},
    path::{Path, PathBuf},
};

use super::{
    Result, certs,
    containerd::{self, Programs, Snapshotter},
    flotilla::Settings,
    image::Images,
    net::{Namespace, Switch},
    node::{MESH_PORT, Node, NodePlan},
    place,
    registry::{self, Registry},
    samples, sweep,
};

/// Runs a story on one series of containerd, or says why it is skipped.
pub(crate) fn tell(series: &str, story: impl FnOnce(&Lab, Programs)) {
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

/// The image that CRI runs sandboxes from.
pub(crate) const SANDBOX: &str = "lab/pause:1";

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
        sweep::leftovers(false);
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
    pub(crate) fn registry(&self) -> RefMut<'_, Registry> {
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
        registry::trust_plain_http(&self.hosts_dir(), host)
    }

    /// Plans a node; it starts with `Plan::start`.
    pub(crate) fn node(&self, programs: &Programs) -> Plan<'_> {
        let index = self.nodes.get() + 1;
        self.nodes.set(index);
        let name = format!("n{index}");
        let address = self.loopback_address(index);
        Plan {
            lab: self,
            settings: NodePlan::settings(&name, &self.dir.join(&name), &address, &self.hosts_dir()),
            name,
            programs: programs.clone(),
            address,
            flotilla: true,
            later: false,
            certificate: true,
            annotations: false,
            more: String::new(),
            namespace: None,
            sandbox_image: self.name(SANDBOX),
            hosts_dir: self.hosts_dir(),
        }
    }

    /// Starts `count` nodes with Flotilla that know each other.
    pub(crate) fn crowd(&self, programs: &Programs, count: usize) -> Result<Vec<Node>> {
        self.crowd_of(programs, count, |plan| plan)
    }

    /// A crowd whose plans are changed before it starts.
    pub(crate) fn crowd_of<'lab>(
        &'lab self,
        programs: &Programs,
        count: usize,
        change: impl Fn(Plan<'lab>) -> Plan<'lab>,
    ) -> Result<Vec<Node>> {
        let plans: Vec<Plan<'lab>> = (0..count).map(|_| change(self.node(programs))).collect();
        *self.members.borrow_mut() =
            plans.iter().map(|plan| format!("{}:{MESH_PORT}", plan.address)).collect();
        plans.into_iter().map(Plan::start).collect()
    }

    /// A network of namespaces for nodes, its links shaped as `tc`'s tbf is told, with a registry in it that
    /// has the same images.
    pub(crate) fn network(&self, shape: Option<&str>) -> Result<Network> {
        let switch = Switch::new(self.short_name(), shape)?;
        let place = switch.plug("registry", 250)?;
        let root = self.dir.join("blobs").display().to_string();
        let registry = Registry::start(&root, self.dir.join("registry-in-network"), Some(&place))?;
        self.trust_plain_http(registry.host())?;
        Ok(Network { switch, registry, place })
    }

    /// A name that no other lab has: runc's list of containers, for one, is the whole machine's.
    pub(crate) fn short_name(&self) -> &str {
        self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// All of 127.0.0.0/8 is loopback: each lab takes a net of its own by its process id, so that every
    /// node can have the mesh's port.
    fn loopback_address(&self, index: u8) -> String {
        let name = self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut numbers =
            name.trim_start_matches(sweep::PREFIX).split('x').map(|n| n.parse().unwrap_or(0u32));
        let (process, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let lab = process.wrapping_mul(31).wrapping_add(count) % (254 * 256);
        format!("127.{}.{}.{index}", 1 + lab / 256, lab % 256)
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

/// Namespaces around a bridge, a registry in one of them.
pub(crate) struct Network {
    pub(crate) switch: Switch,
    pub(crate) registry: Registry,
    /// Where the registry is.
    pub(crate) place: Namespace,
}

/// How a node will be.
pub(crate) struct Plan<'lab> {
    lab: &'lab Lab,
    name: String,
    programs: Programs,
    address: String,
    settings: Settings,
    flotilla: bool,
    later: bool,
    certificate: bool,
    annotations: bool,
    more: String,
    namespace: Option<Namespace>,
    sandbox_image: String,
    hosts_dir: PathBuf,
}

impl Plan<'_> {
    /// In a namespace of its own, with a shaped link. Comes before settings.
    pub(crate) fn in_network(mut self, network: &Network) -> Result<Self> {
        let index =
            self.name.trim_start_matches('n').parse().map_err(|error| format!("{}: {error}", self.name))?;
        let namespace = network.switch.plug(&self.name, index)?;
        self.address = namespace.address();
        let dir = self.lab.dir.join(&self.name);
        self.settings = NodePlan::settings(&self.name, &dir, &self.address, &self.lab.hosts_dir());
        self.sandbox_image = network.registry.name(SANDBOX);
        self.namespace = Some(namespace);
        Ok(self)
    }

    /// containerd as it is, without Flotilla.
    pub(crate) fn stock(mut self) -> Self {
        self.flotilla = false;
        self
    }

    /// containerd as it is; Flotilla comes later, with `Node::install`, and is not entered into containerd.
    pub(crate) fn later(mut self) -> Self {
        self.later = true;
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

    /// The member's name, and the address that others dial.
    pub(crate) fn place(&self) -> (&str, &str) {
        (&self.name, &self.address)
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

    /// containerd is told of this folder of hosts.toml files, or of none if it is empty; Flotilla reads the lab's.
    pub(crate) fn containerd_hosts_dir(mut self, dir: PathBuf) -> Self {
        self.hosts_dir = dir;
        self
    }

    pub(crate) fn start(mut self) -> Result<Node> {
        let dir = self.lab.dir.join(&self.name);
        let mut snapshotter = Snapshotter::Overlayfs;
        if self.flotilla {
            if self.certificate {
                let tls =
                    certs::node(flotilla_program(), &self.lab.dir.join("tls"), &self.name, &self.address)?;
                self.settings
                    .path("mesh", "ca", &tls.join("ca.pem"))
                    .path("mesh", "cert", &tls.join("node.pem"))
                    .path("mesh", "key", &tls.join("node-key.pem"));
            }
            self.settings.list("mesh", "members", &self.lab.members.borrow());
            if !self.later {
                snapshotter = NodePlan::snapshotter(&dir, self.annotations);
            }
        }
        let containerd = containerd::Settings {
            snapshotter,
            sandbox_image: self.sandbox_image,
            hosts_dir: self.hosts_dir,
            more: self.more,
        };
        let at_once = self.flotilla && !self.later;
        let settings = self.settings.clone();
        let plan = NodePlan {
            name: self.name,
            dir,
            programs: self.programs,
            containerd,
            cri: example("cri"),
            namespace: self.namespace,
            flotilla: at_once.then(|| (flotilla_program().to_owned(), self.settings)),
        };
        let mut node = plan.start()?;
        node.settings = settings;
        Ok(node)
    }
}
