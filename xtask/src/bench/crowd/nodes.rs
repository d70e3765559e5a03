//! The nodes of one round and their registry, each in a network namespace of its own.
//!
//! ```text
//!  registry [10.77.0.250:5000]──┐
//!  n1 containerd + flotilla ────┤ bridge    every link shaped both ways
//!  n2 containerd + flotilla ────┤
//!  n3 flotilla ─────────────────┤           `flotilla pull` orders what containerd asks for elsewhere
//!  …                        ────┘
//! ```
//! Without Flotilla the same nodes are containerds, and a plain client on the others (`examples/lab_puller.rs`).
//! All state lies in memory (tmpfs): the machine's one disk is not what a node's own would be.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{
    fault::{Fault, Part},
    node::{Member, Place, example},
    scenario::{Links, Scenario},
};
use crate::{
    bench::{image::Image, machine},
    lab::{
        Result,
        containerd::{self, Programs},
        net::{Namespace, Switch},
        new_lab,
        node::MESH_PORT,
        process::PATIENCE,
        registry::{self, Registry},
        sweep,
    },
    shell::quiet,
};

/// The registry's last byte of the address; nodes have those below.
const REGISTRY_INDEX: u8 = 250;

/// Nodes with a containerd; the others do without, since a dozen of them would be limited by two cores.
const CONTAINERDS: usize = 2;

/// How often daemons are asked whether they have met; they have no event for it.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How the nodes get the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Flotilla,
    Direct,
}

/// What a crowd is made of.
pub struct Plan<'a> {
    pub way: Way,
    pub scenario: &'a Scenario,
    pub image: &'a Image,
    pub nodes: u8,
    pub programs: &'a Programs,
}

impl Plan<'_> {
    /// Each node's part in what goes wrong.
    fn parts(&self) -> Result<Vec<Part>> {
        let nodes = usize::from(self.nodes);
        if self.scenario.fault == Fault::None {
            return Ok(vec![Part::Sound; nodes]);
        }
        let mut rank = Command::new(example("lab_faults"));
        rank.args(["rank", &self.image.largest()?.digest]).args((0..nodes).map(name));
        let ranked = quiet(&mut rank)?;
        let first = ranked.lines().next().unwrap_or_default();
        let tracker = (0..nodes).find(|node| name(*node) == first).ok_or("no member tracks the layer")?;
        Ok(self.scenario.fault.parts(nodes, tracker))
    }

    /// The second half of the nodes stands in the second zone, without the registry.
    fn is_beyond(&self, node: usize) -> bool {
        self.scenario.links == Links::TwoZones && node >= usize::from(self.nodes) / 2
    }

    /// Which nodes have a containerd: the one whose store rots, the first of each zone, then whoever nothing happens
    /// to. Beside a killed daemon containerd would ask the registry, as it should, and nothing could be said of the
    /// crowd.
    fn with_containerd(&self, parts: &[Part]) -> Vec<usize> {
        let rank = |node: &usize| match parts.get(*node) {
            Some(Part::Rotten) => 0,
            Some(Part::Sound) if *node == 0 || self.is_beyond(*node) != self.is_beyond(node - 1) => 1,
            Some(Part::Sound) => 2,
            Some(_) | None => 3,
        };
        if self.scenario.seeded {
            // What is measured there is what passes between daemons.
            return Vec::new();
        }
        let mut order: Vec<usize> = (0..parts.len()).collect();
        // Equals stay in their order.
        order.sort_by_key(rank);
        order.truncate(CONTAINERDS);
        order
    }
}

/// A node's name by its place.
fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// A running crowd; all of it goes when it is dropped.
pub struct Crowd {
    dir: PathBuf,
    switch: Switch,
    pub registry: Registry,
    pub registry_network: Namespace,
    pub members: Vec<Member>,
    /// The image's full name.
    pub image: String,
    /// The registry's folder.
    root: String,
}

impl Crowd {
    pub fn start(plan: &Plan) -> Result<Crowd> {
        let dir = new_lab()?;
        let started = Crowd::start_in(&dir, plan);
        if started.is_err() {
            sweep::lab(&dir);
        }
        started
    }

    fn start_in(dir: &Path, plan: &Plan) -> Result<Crowd> {
        quiet(Command::new("mount").args(["-t", "tmpfs", "-o", "size=75%", "bench"]).arg(dir))?;
        let lab = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let links = plan.scenario.links;
        let shaped = (links != Links::Unshaped).then(|| plan.image.rate.shape());
        let switch = Switch::new(lab, shaped.as_deref())?;
        if links == Links::TwoZones {
            switch.add_zone(&plan.image.rate.quarter().shape())?;
        }
        let registry_network = switch.plug("registry", REGISTRY_INDEX)?;
        if links == Links::SlowRegistry {
            registry_network.shape_sending(&plan.image.rate.quarter().shape())?;
        }
        let root = plan.image.root.display().to_string();
        let registry = Registry::start(&root, dir.join("registry"), Some(&registry_network))?;
        registry::trust_plain_http(&dir.join("certs.d"), registry.host())?;
        let plug = |node: usize| {
            let index = u8::try_from(node + 1).map_err(|_| "more nodes than addresses")?;
            if plan.is_beyond(node) {
                switch.plug_into_zone(&name(node), index)
            } else {
                switch.plug(&name(node), index)
            }
        };
        let networks = (0..usize::from(plan.nodes)).map(plug).collect::<Result<Vec<Namespace>>>()?;
        let members = members(dir, plan, networks, &registry)?;
        let image = registry.name(&plan.image.name());
        let crowd = Crowd { dir: dir.to_owned(), switch, registry, registry_network, members, image, root };
        crowd.meet()?;
        Ok(crowd)
    }

    /// Waits until every daemon sees all the others.
    fn meet(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for daemon in self.members.iter().filter_map(|member| member.daemon.as_ref()) {
            loop {
                let status: String = daemon.status()?.split_whitespace().collect();
                if status.matches("\"state\":\"alive\"").count() >= self.members.len() {
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

    /// The first node has the image before the others.
    pub fn seed(&self) -> Result<()> {
        self.members.first().map_or(Ok(()), |member| member.have(&self.image))
    }

    /// What goes wrong before anybody pulls: a store rots.
    pub fn spoil(&self, image: &Image) -> Result<()> {
        let rotten = self.members.iter().filter(|member| member.part == Part::Rotten);
        let digest = &image.largest()?.digest;
        rotten.into_iter().try_for_each(|member| member.rot(&self.image, digest))
    }

    /// What goes wrong in the middle.
    pub fn strike(&mut self, fault: Fault) -> Result<()> {
        if fault == Fault::OriginKilled {
            self.registry.process().kill()?;
        }
        for member in &mut self.members {
            let part = member.part;
            if fault == Fault::OthersDead && part == Part::Killed {
                member.disconnect()?;
            }
            let Some(process) = member.process() else { continue };
            match part {
                Part::Killed => drop(process.kill()?),
                Part::Stopped => process.signal("STOP")?,
                Part::Sound | Part::LyingRelay | Part::MisledReader | Part::Rotten => {}
            }
        }
        Ok(())
    }

    /// The stopped go on.
    pub fn go_on(&mut self) -> Result<()> {
        let stopped = self.members.iter_mut().filter(|member| member.part == Part::Stopped);
        stopped.filter_map(Member::process).try_for_each(|process| process.signal("CONT"))
    }

    /// The registry comes back with a log that begins anew.
    pub fn restart_registry(&mut self) -> Result<()> {
        let dir = self.dir.join("registry");
        self.registry = Registry::start(&self.root, dir, Some(&self.registry_network))?;
        Ok(())
    }

    /// Frames that went into the second zone, in bytes.
    pub fn sent_to_second_zone(&self) -> Result<u64> {
        self.switch.thin_link().map(|traffic| traffic.sent)
    }

    /// Seconds of processor time of each member's daemon so far; `None` where none runs any more.
    pub fn cpu_s(&mut self) -> Vec<Option<f64>> {
        let cpu = |member: &mut Member| member.process().map(|process| machine::cpu_s(process.id()));
        self.members.iter_mut().map(cpu).collect()
    }

    /// Of the daemon that had the most.
    pub fn rss_mib(&mut self) -> f64 {
        let rss = |member: &mut Member| member.process().map(|process| machine::rss_mib(process.id()));
        self.members.iter_mut().filter_map(rss).fold(0.0, f64::max)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        sweep::lab(&self.dir);
    }
}

fn members(dir: &Path, plan: &Plan, networks: Vec<Namespace>, registry: &Registry) -> Result<Vec<Member>> {
    let parts = plan.parts()?;
    let with_containerd = plan.with_containerd(&parts);
    let seeds: Vec<String> = networks.iter().map(|n| format!("{}:{MESH_PORT}", n.address())).collect();
    let place = |(node, (network, part)): (usize, (Namespace, Part))| {
        let zone = (plan.scenario.links == Links::TwoZones).then_some(if plan.is_beyond(node) {
            "second"
        } else {
            "first"
        });
        let place = Place {
            dir: dir.join(name(node)),
            name: name(node),
            network,
            registry,
            part,
            zone,
            with_containerd: with_containerd.contains(&node),
        };
        place.start(plan, &seeds)
    };
    networks.into_iter().zip(parts).enumerate().map(place).collect()
}

/// The newest containerd that is there.
pub fn newest_containerd() -> Result<Programs> {
    let newest = containerd::SERIES.iter().rev().find_map(|series| containerd::find(series));
    newest.ok_or_else(|| "no containerd here; cargo xtask setup gets one".into())
}
