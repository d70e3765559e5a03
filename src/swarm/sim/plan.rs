//! Who takes part in a simulated crowd.

use std::{fmt, time::Duration};

use super::super::message::Failure;

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Fault {
    None,
    /// Sends other bytes than it has.
    CorruptRelay,
    /// Reads other bytes from the origin than are there, and states their digests.
    LyingReader,
    /// Sends nothing from this tick on, but lives.
    Stalls(u64),
    /// Sends nothing before this tick.
    Wakes(u64),
    /// Is gone at this tick.
    Dies(u64),
    /// Takes and never gives, as its role says.
    Leech,
    /// Its link has this share of the others', in percent.
    Slow(u8),
}

/// One node of a plan.
#[derive(Clone, Copy, Debug)]
pub(in crate::swarm) struct NodePlan {
    pub(in crate::swarm) fault: Fault,
    /// The tick at which it begins to pull.
    pub(in crate::swarm) begins: u64,
    /// It has the proven blob already.
    pub(in crate::swarm) seeded: bool,
    /// Ticks until it answers what it holds.
    pub(in crate::swarm) answers_after: u64,
    pub(in crate::swarm) zone: u8,
}

/// A crowd, told with a builder.
#[derive(Clone, Debug)]
pub(in crate::swarm) struct Plan {
    pub(in crate::swarm) seed: u64,
    pub(in crate::swarm) blob_len: u64,
    pub(in crate::swarm) tick: Duration,
    /// Between sending a message or asking for a piece, and its arrival; and the same again until bytes that were sent
    /// are there. On a full link that is what its queue holds.
    pub(in crate::swarm) delay: Duration,
    pub(in crate::swarm) nodes: Vec<NodePlan>,
    /// The origin's link over a node's.
    pub(in crate::swarm) origin_link: f64,
    /// From the request to the first byte.
    pub(in crate::swarm) origin_delay: Duration,
    /// What the origin answers instead of bytes, from this tick on.
    pub(in crate::swarm) origin_failure: Option<(u64, Failure, &'static str)>,
    /// The link between two zones over a node's, each way.
    pub(in crate::swarm) zone_link: f64,
    /// That link serves a few flows at a time, and others wait without a byte.
    pub(in crate::swarm) unfair: bool,
}

impl Plan {
    /// `nodes` that pull a blob of so many MiB from a cold origin whose link is like theirs.
    pub(in crate::swarm) fn cold(seed: u64, nodes: usize, blob_mib: u64) -> Self {
        let node = NodePlan { fault: Fault::None, begins: 0, seeded: false, answers_after: 0, zone: 0 };
        Self {
            seed,
            blob_len: blob_mib << 20,
            tick: Duration::from_millis(if nodes > 200 { 5 } else { 2 }),
            delay: Duration::ZERO,
            nodes: vec![node; nodes],
            origin_link: 1.0,
            origin_delay: Duration::from_millis(4),
            origin_failure: None,
            zone_link: f64::INFINITY,
            unfair: false,
        }
    }

    pub(in crate::swarm) fn fault(mut self, number: usize, fault: Fault) -> Self {
        self.nodes[number].fault = fault;
        self
    }

    pub(in crate::swarm) fn origin_link(mut self, share: f64) -> Self {
        self.origin_link = share;
        self
    }

    pub(in crate::swarm) fn delay(mut self, millis: u64) -> Self {
        self.delay = Duration::from_millis(millis);
        self
    }

    /// From so many seconds on nobody reaches the origin.
    pub(in crate::swarm) fn origin_gone(mut self, seconds: f64) -> Self {
        let failure = Failure::Later { retry_after: Duration::ZERO };
        self.origin_failure = Some((self.at(seconds), failure, "origin_unreachable"));
        self
    }

    /// The tick at which so many seconds have passed.
    pub(in crate::swarm) fn at(&self, seconds: f64) -> u64 {
        (seconds / self.tick.as_secs_f64()) as u64
    }

    pub(in crate::swarm) fn begins(mut self, number: usize, seconds: f64) -> Self {
        self.nodes[number].begins = self.at(seconds);
        self
    }

    pub(in crate::swarm) fn seeded(mut self, number: usize) -> Self {
        self.nodes[number].seeded = true;
        self
    }

    pub(in crate::swarm) fn answers_after(mut self, number: usize, seconds: f64) -> Self {
        self.nodes[number].answers_after = self.at(seconds);
        self
    }

    /// Half of the nodes are in another zone, behind a link with this share of a node's.
    pub(in crate::swarm) fn two_zones(mut self, link: f64) -> Self {
        self.zone_link = link;
        for node in self.nodes.iter_mut().skip(1).step_by(2) {
            node.zone = 1;
        }
        self
    }

    /// What waits for the link between the zones waits for long.
    pub(in crate::swarm) fn unfair(mut self) -> Self {
        self.unfair = true;
        self
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<Fault> =
            self.nodes.iter().map(|node| node.fault).filter(|fault| *fault != Fault::None).collect();
        write!(f, "simulation: seed {}, {} nodes, {} MiB", self.seed, self.nodes.len(), self.blob_len >> 20)?;
        if faults.is_empty() { Ok(()) } else { write!(f, ", {faults:?}") }
    }
}
