//! One node: what the shell of a pull does with the actions of its exchange.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{Fault, Message, Plan, Sim, origin::Read, piece};
use crate::{
    mesh::{Member, Role},
    oci::{Algorithm, Digest},
    piece::{PieceLayout, Statement},
    swarm::{
        exchange::{Action, Check, Exchange, Setting},
        message::{Handle, Report},
    },
};

/// The order, how far in it, and the bytes of the piece that is read.
pub(super) type Auditing = (Vec<(u32, Statement, String)>, usize, f64);

pub(super) struct Node {
    pub(super) name: String,
    pub(super) fault: Fault,
    pub(super) zone: u8,
    pub(super) alive: bool,
    pub(super) seeded: bool,
    pub(super) began: bool,
    pub(super) begins: u64,
    pub(super) exchange: Exchange,
    /// What is really stored.
    pub(super) stored: BTreeMap<u32, Statement>,
    /// The tracker's node and our number there.
    pub(super) line: Option<(usize, Handle)>,
    pub(super) heard_at: u64,
    pub(super) uploads: Vec<Upload>,
    pub(super) waiting: VecDeque<Upload>,
    /// Which piece it has sent to whom.
    pub(super) fed: VecDeque<(u32, usize)>,
    pub(super) reads: Vec<Read>,
    pub(super) audit: Option<Auditing>,
    /// Announcements that wait for the shell's tick.
    pub(super) unsaid: Vec<Report>,
    pub(super) said_at: u64,
    pub(super) unclosed: bool,
    /// What the in-order reader could have read when nine tenths were here, as a share of all.
    pub(super) front_at_ninety: Option<f64>,
    pub(super) finished: Option<u64>,
    pub(super) failed: Option<String>,
    pub(super) convicted: BTreeSet<String>,
    pub(super) misled: bool,
    /// What it stated of pieces that it read itself.
    pub(super) vouched: BTreeMap<u32, Statement>,
}

#[derive(Clone)]
pub(super) struct Upload {
    pub(super) to: usize,
    pub(super) index: u32,
    pub(super) check: Check,
    pub(super) left: f64,
    pub(super) since: u64,
}

impl Node {
    pub(super) fn new(number: usize, plan: &Plan) -> Self {
        let node = plan.nodes[number];
        let name = format!("node-{number}");
        let me = Member {
            name: name.clone(),
            address: format!("{name}:7442"),
            zone: plan.zone_link.is_finite().then(|| format!("zone-{}", node.zone)),
            generation: 1,
            role: if node.fault == Fault::Leech { Role::Leech } else { Role::Peer },
        };
        let blob_len = plan.blob_len;
        let setting = Setting {
            digest: Digest::of(Algorithm::Sha256, b"simulated"),
            blob_len,
            me,
            reads_origin: true,
            seed: plan.seed * 100_000 + number as u64,
        };
        let pieces = (0..PieceLayout::of(blob_len).count()).map(|index| (index, piece(index, 0)));
        let stored: BTreeMap<u32, Statement> = if node.seeded { pieces.collect() } else { BTreeMap::new() };
        Self {
            name,
            fault: node.fault,
            zone: node.zone,
            alive: true,
            seeded: node.seeded,
            began: false,
            begins: node.begins,
            exchange: Exchange::new(setting, stored.clone()),
            stored,
            line: None,
            heard_at: 0,
            uploads: Vec::new(),
            waiting: VecDeque::new(),
            fed: VecDeque::new(),
            reads: Vec::new(),
            audit: None,
            unsaid: Vec::new(),
            said_at: 0,
            unclosed: false,
            front_at_ninety: None,
            finished: node.seeded.then_some(0),
            failed: None,
            convicted: BTreeSet::new(),
            misled: false,
            vouched: BTreeMap::new(),
        }
    }

    /// Whether it does nothing any more although it lives.
    pub(super) fn is_frozen(&self, tick: u64) -> bool {
        match self.fault {
            Fault::Stalls(at) => tick >= at,
            Fault::Wakes(at) => tick < at,
            Fault::None
            | Fault::Leech
            | Fault::CorruptRelay
            | Fault::LyingReader
            | Fault::Slow(_)
            | Fault::Dies(_) => false,
        }
    }

    /// Whether nobody waits for it to finish.
    pub(super) fn is_odd(&self) -> bool {
        matches!(self.fault, Fault::Stalls(_))
    }

    /// Its link over the others'.
    pub(super) fn link(&self) -> f64 {
        match self.fault {
            Fault::Slow(percent) => f64::from(percent) / 100.0,
            Fault::None
            | Fault::Leech
            | Fault::CorruptRelay
            | Fault::LyingReader
            | Fault::Stalls(_)
            | Fault::Wakes(_)
            | Fault::Dies(_) => 1.0,
        }
    }
}

impl Sim {
    pub(super) fn act(&mut self, number: usize) {
        let mut reports = std::mem::take(&mut self.nodes[number].unsaid);
        let frozen = self.nodes[number].is_frozen(self.tick);
        for action in self.nodes[number].exchange.take_actions() {
            if frozen {
                continue;
            }
            let delay = self.ticks(self.plan.origin_delay.max(Duration::from_millis(1)));
            let node = &mut self.nodes[number];
            match action {
                Action::Fetch { peer, index, check } => {
                    let to = self.by_name[&peer.name];
                    let left = self.layout.len_of(index) as f64;
                    let upload = Upload { to: number, index, check, left, since: self.tick };
                    self.send(Message::Ask { to, upload });
                }
                // A chain is a few kilobytes: it comes at once.
                Action::FetchChain { peer } => {
                    let unfit = node.stored.iter().filter(|(index, stored)| **stored != piece(**index, 0));
                    let unfit = unfit.map(|(&index, _)| index).collect();
                    let now = self.now();
                    self.nodes[number].exchange.chain_checked(&peer.name, Some(unfit), now);
                }
                Action::DropChain => {}
                Action::ReadOrigin { run } => {
                    let left = self.layout.len_of(run.start) as f64;
                    let (begins, beat) = (self.tick + delay, self.tick);
                    node.reads.push(Read { next: run.start, run, left, beat, begins });
                }
                Action::StopOrigin { run } => node.reads.retain(|read| read.run != run),
                Action::Tell(report) => reports.push(report),
                Action::Forget { index } => drop(node.stored.remove(&index)),
                Action::Audit { order } => node.audit = Some((order, 0, 0.0)),
                Action::AskStatements { voucher } => {
                    let asked = &self.nodes[self.by_name[&voucher]];
                    let by = asked.exchange.join().from;
                    let vouched =
                        |index| asked.vouched.get(&index).copied().unwrap_or(piece(index, u32::MAX));
                    let said: Vec<Statement> = (0..self.layout.count()).map(vouched).collect();
                    self.nodes[number].exchange.statements(&voucher, Some((&by, &said)));
                }
                Action::Ban { member, .. } => drop(node.convicted.insert(member.name)),
                Action::Misled { .. } => node.misled = true,
                // Blobs here have no bytes.
                Action::Keep { .. } | Action::Share => {}
                Action::Fail { reason } => self.gave_up(number, reason),
            }
        }
        let pace = self.nodes[number].exchange.pace();
        let said_at = self.nodes[number].said_at;
        let waits = !pace.is_zero()
            && self.tick - said_at < self.ticks(pace)
            && reports.iter().all(|report| matches!(report, Report::Held(_)));
        if waits {
            self.nodes[number].unsaid = reports;
        } else if let Some((tracker, handle)) = self.nodes[number].line
            && !reports.is_empty()
            && self.nodes[number].alive
        {
            self.nodes[number].said_at = self.tick;
            self.send(Message::ToTracker { tracker, handle, reports });
        }
    }
}
