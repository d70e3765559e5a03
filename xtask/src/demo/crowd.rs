//! The nodes of one round: started, released together, counted.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    demo_image::{self, Image},
    gate::{Ended, Released, Waiting},
    lab::{
        Result, certs,
        containerd::{self, Programs, Snapshotter},
        net::{Namespace, SHAPE_100_MBIT, Switch, Traffic},
        new_lab,
        node::{MESH_PORT, Node, NodePlan},
        process::PATIENCE,
        registry::{self, Registry},
        sweep,
    },
    shell::workspace,
};

/// How the nodes get the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Flotilla,
    /// containerd's overlayfs, straight from the registry.
    Direct,
}

/// The registry's last byte of the address; nodes have 1 to 100.
const REGISTRY_INDEX: u8 = 250;

/// How often daemons are asked whether they have met; they have no event for it.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A network with a registry and nodes.
pub struct Crowd {
    dir: PathBuf,
    registry: Registry,
    registry_network: Namespace,
    nodes: Vec<(Node, Namespace)>,
    image: String,
    kept: bool,
}

/// How the pulls went.
pub struct Pulled {
    /// From the release to the end of the last.
    pub wall: Duration,
    /// Between the first and the last node's release.
    pub spread: Duration,
    /// Each node's own time, or why its pull failed.
    pub each: Vec<Ended>,
}

/// Who sent how many bytes.
pub struct Counts {
    pub nodes: Vec<NodeCounts>,
    /// Bodies that the registry sent for the image, from its log.
    pub registry_bytes: u64,
    /// All that went over the registry's interface.
    pub registry_traffic: Traffic,
    /// Requests of containerd for a layer, from the registry's log.
    pub layers_fetched_by_containerd: usize,
}

pub struct NodeCounts {
    pub name: String,
    /// IP packets from the registry, then from each node, by the kernel's counters.
    pub received_from: Vec<u64>,
    /// What Flotilla says of the layers' bytes: from peers, from the registry.
    pub by_source: Option<(u64, u64)>,
    pub traffic: Traffic,
}

impl Crowd {
    pub fn start(way: Way, count: u8, programs: &Programs, image: &Image) -> Result<Crowd> {
        let dir = new_lab()?;
        let started = Crowd::start_in(&dir, way, count, programs, image);
        if started.is_err() {
            sweep::lab(&dir);
        }
        started
    }

    fn start_in(dir: &Path, way: Way, count: u8, programs: &Programs, image: &Image) -> Result<Crowd> {
        let lab = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let switch = Switch::new(lab, Some(SHAPE_100_MBIT))?;
        let registry_network = switch.plug("registry", REGISTRY_INDEX)?;
        let root = image.root.display().to_string();
        let registry = Registry::start(&root, dir.join("registry"), Some(&registry_network))?;
        registry::trust_plain_http(&dir.join("certs.d"), registry.host())?;
        let networks: Vec<Namespace> =
            (1..=count).map(|index| switch.plug(&format!("n{index}"), index)).collect::<Result<_>>()?;
        let members: Vec<String> = networks.iter().map(|n| format!("{}:{MESH_PORT}", n.address())).collect();
        let mut nodes = Vec::new();
        for (network, index) in networks.into_iter().zip(1..) {
            let place = Place { dir, name: format!("n{index}"), registry: &registry, members: &members };
            nodes.push((place.node(way, programs, &network)?, network));
        }
        let image = registry.name(demo_image::NAME);
        let crowd = Crowd { dir: dir.to_owned(), registry, registry_network, nodes, image, kept: false };
        crowd.count_from_now()?;
        Ok(crowd)
    }

    /// The kernel counts what each node receives from the registry and from each node.
    fn count_from_now(&self) -> Result<()> {
        let senders = self.senders();
        self.nodes.iter().try_for_each(|(_, network)| network.count_from(&senders))
    }

    fn senders(&self) -> Vec<&Namespace> {
        let nodes = self.nodes.iter().map(|(_, network)| network);
        [&self.registry_network].into_iter().chain(nodes).collect()
    }

    /// Waits until every daemon sees all the others.
    pub fn meet(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for daemon in self.nodes.iter().filter_map(|(node, _)| node.daemon()) {
            loop {
                let status: String = daemon.status()?.split_whitespace().collect();
                if status.matches("\"state\":\"alive\"").count() >= self.nodes.len() {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("the members have not met; one of them says {status}").into());
                }
                thread::park_timeout(ASK_EVERY);
            }
        }
        Ok(())
    }

    /// All nodes pull the image through CRI, released together.
    pub fn pull(&self) -> Result<Pulled> {
        let client = |node: &Node| node.cri.command(&["pull", "--gate", &self.image]);
        let waiting = self.nodes.iter().map(|(node, _)| Waiting::start(&node.name, client(node)));
        let waiting = waiting.collect::<Result<Vec<Waiting>>>()?;
        let start = Instant::now();
        let pulling = waiting.into_iter().map(Waiting::release).collect::<Result<Vec<Released>>>()?;
        let spread = start.elapsed();
        let each = pulling.into_iter().map(Released::end).collect();
        Ok(Pulled { wall: start.elapsed(), spread, each })
    }

    /// Runs a container of the image on each node; what went wrong, if something did.
    pub fn run(&self) -> Vec<String> {
        let run = |(node, _): &(Node, Namespace)| match node.run(&self.image, &demo_image::COMMAND) {
            Ok(ran) if ran.exit_code == 0 && ran.output.contains(demo_image::PRINTS) => None,
            Ok(ran) => {
                Some(format!("{}: the container ended with {}: {}", node.name, ran.exit_code, ran.output))
            }
            Err(failure) => Some(format!("{}: {failure}", node.name)),
        };
        self.nodes.iter().filter_map(run).collect()
    }

    pub fn counts(&self, image: &Image) -> Result<Counts> {
        let repository = demo_image::NAME.split(':').next().unwrap_or_default();
        let fetched = self.registry.blob_reads(repository).into_iter().filter(|read| {
            let of_layer = image.layers.iter().any(|digest| read.uri.contains(digest));
            of_layer && read.user_agent.starts_with("containerd/")
        });
        Ok(Counts {
            registry_bytes: self.registry.body_bytes(repository),
            registry_traffic: self.registry_network.traffic()?,
            layers_fetched_by_containerd: fetched.count(),
            nodes: self.nodes.iter().map(|node| self.count(node)).collect::<Result<_>>()?,
        })
    }

    fn count(&self, (node, network): &(Node, Namespace)) -> Result<NodeCounts> {
        let received = self.senders().into_iter().map(|sender| network.received_from(sender));
        let by_source = match node.daemon() {
            None => None,
            Some(daemon) => {
                let metrics = daemon.metrics()?;
                let bytes =
                    |source: &str| metrics.sum("flotilla_bytes_total", &[&format!("source=\"{source}\"")]);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a counter of bytes"
                )]
                Some((bytes("peer") as u64, bytes("origin") as u64))
            }
        };
        Ok(NodeCounts {
            name: node.name.clone(),
            received_from: received.collect::<Result<_>>()?,
            by_source,
            traffic: network.traffic()?,
        })
    }

    /// Leaves everything up, and says how to look around.
    pub fn keep(mut self) -> Result<()> {
        fs::write(self.dir.join(sweep::KEEP), "")
            .map_err(|error| format!("marking the lab as kept: {error}"))?;
        self.kept = true;
        let workspace = workspace();
        let program = workspace.join("target/debug/flotilla");
        println!("kept: {} (cargo xtask sweep removes it)", self.dir.display());
        for (node, network) in &self.nodes {
            println!(
                "  {}: network {}, ctr --address {}",
                node.name,
                network.name(),
                node.containerd.socket().display()
            );
            println!(
                "      {} status --config {}/{}/flotilla/config.toml",
                program.display(),
                self.dir.display(),
                node.name
            );
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if self.kept {
            std::mem::take(&mut self.nodes).into_iter().for_each(|(node, _)| node.leave());
        } else {
            sweep::lab(&self.dir);
        }
    }
}

/// Where a node comes to be.
struct Place<'a> {
    dir: &'a Path,
    name: String,
    registry: &'a Registry,
    members: &'a [String],
}

impl Place<'_> {
    fn node(self, way: Way, programs: &Programs, network: &Namespace) -> Result<Node> {
        let dir = self.dir.join(&self.name);
        let hosts_dir = self.dir.join("certs.d");
        let target = workspace().join("target/debug");
        let (snapshotter, flotilla) = match way {
            Way::Direct => (Snapshotter::Overlayfs, None),
            Way::Flotilla => {
                let program = target.join("flotilla");
                let address = network.address();
                let tls = certs::node(&program, &self.dir.join("tls"), &self.name, &address)?;
                let mut settings = NodePlan::settings(&self.name, &dir, &address, &hosts_dir);
                settings
                    .list("mesh", "members", self.members)
                    .path("mesh", "ca", &tls.join("ca.pem"))
                    .path("mesh", "cert", &tls.join("node.pem"))
                    .path("mesh", "key", &tls.join("node-key.pem"));
                (NodePlan::snapshotter(&dir, false), Some((program, settings)))
            }
        };
        let sandbox_image = self.registry.name("lab/pause:1");
        let plan = NodePlan {
            name: self.name,
            dir,
            programs: programs.clone(),
            containerd: containerd::Settings { snapshotter, sandbox_image, hosts_dir, more: String::new() },
            cri: target.join("examples/cri"),
            namespace: Some(network.clone()),
            flotilla,
        };
        plan.start()
    }
}
