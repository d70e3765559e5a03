//! The real tracker and exchanges in one thread with virtual time and seeds: links with rates, members that
//! die, stall and lie. A tick is 2 ms; a message takes one.
//!
//! A node's upload is shared by its slots, its download by what it receives, the origin's link by its readers.

mod links;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    exchange::{Action, Check, Exchange, Fetched, Setting},
    message::{Event, Failure, Handle, Report, Run, Verdict},
    tracker::{Answer, Swarm},
};
use crate::{
    mesh::{Member, Role},
    oci::{Algorithm, Digest},
    piece::{PieceLayout, Statement},
};

const TICK: Duration = Duration::from_millis(2);
/// Bytes in a tick at 100 Mbit/s.
const LINK: f64 = 12_500_000.0 * 0.002;
/// As the peer door has them.
const SLOTS: usize = 6;
const SLOT_WAIT_TICKS: u64 = 25;
/// A simulated request without a byte for this long fails, as in the shell.
const STALL_TICKS: u64 = 2500;

/// The bytes of piece `index`: true ones, or what the liar numbered so made of them.
fn piece(index: u32, lie: u32) -> Statement {
    blake3::hash(&[index.to_le_bytes(), lie.to_le_bytes()].concat())
}

/// The order, how far in it, and the bytes of the piece that is read.
type Auditing = (Vec<(u32, Statement, String)>, usize, f64);

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Sends other bytes than it has.
    CorruptRelay,
    /// Reads other bytes from the origin than are there, and states their digests.
    LyingReader,
    /// Sends nothing from this tick on, but lives.
    Stalls(u64),
    /// Is gone at this tick.
    Dies(u64),
}

struct Node {
    name: String,
    fault: Fault,
    alive: bool,
    exchange: Exchange,
    /// What is really stored.
    stored: BTreeMap<u32, Statement>,
    line: Option<(usize, Handle)>,
    uploads: Vec<Upload>,
    waiting: VecDeque<Upload>,
    reads: Vec<Read>,
    audit: Option<Auditing>,
    unclosed: bool,
    finished: Option<u64>,
    failed: Option<String>,
    convicted: BTreeSet<String>,
}

#[derive(Clone)]
struct Upload {
    to: usize,
    index: u32,
    check: Check,
    left: f64,
    since: u64,
}

struct Read {
    run: Run,
    next: u32,
    left: f64,
    beat: u64,
}

enum Message {
    ToTracker { tracker: usize, handle: Handle, reports: Vec<Report> },
    ToPuller { node: usize, tracker: usize, handle: Handle, event: Event },
    Ask { to: usize, upload: Upload },
    Answer { to: usize, from: usize, index: u32, outcome: Fetched },
}

pub(super) struct Sim {
    start: Instant,
    tick: u64,
    layout: PieceLayout,
    nodes: Vec<Node>,
    /// By the node that runs it.
    swarms: BTreeMap<usize, Swarm>,
    messages: VecDeque<(u64, Message)>,
    pub(super) origin_bytes: f64,
    /// Bytes a tick that the origin sends.
    pub(super) origin_link: f64,
    pub(super) origin_failure: Option<(Failure, &'static str)>,
}

impl Sim {
    pub(super) fn new(seed: u64, pieces: u32, faults: &[Fault]) -> Self {
        let len = u64::from(pieces) << 20;
        let digest = Digest::of(Algorithm::Sha256, b"simulated");
        let node = |(number, &fault): (usize, &Fault)| {
            let name = format!("node-{number}");
            let me = Member {
                name: name.clone(),
                address: format!("{name}:7442"),
                zone: None,
                generation: 1,
                role: Role::Peer,
            };
            let setting = Setting {
                digest: digest.clone(),
                blob_len: len,
                me,
                reads_origin: true,
                seed: seed * 1000 + number as u64,
            };
            Node {
                name,
                fault,
                alive: true,
                exchange: Exchange::new(setting, []),
                stored: BTreeMap::new(),
                line: None,
                uploads: Vec::new(),
                waiting: VecDeque::new(),
                reads: Vec::new(),
                audit: None,
                unclosed: false,
                finished: None,
                failed: None,
                convicted: BTreeSet::new(),
            }
        };
        println!("simulation: seed {seed}, {} nodes, {pieces} pieces, faults {faults:?}", faults.len());
        Self {
            start: Instant::now(),
            tick: 0,
            layout: PieceLayout::of(len),
            nodes: faults.iter().enumerate().map(node).collect(),
            swarms: BTreeMap::new(),
            messages: VecDeque::new(),
            origin_bytes: 0.0,
            origin_link: LINK,
            origin_failure: None,
        }
    }

    fn now(&self) -> Instant {
        self.start + TICK * u32::try_from(self.tick).unwrap()
    }

    /// Runs to the end: every node that is neither dead nor a liar finished or failed.
    pub(super) fn run(&mut self) {
        self.run_but(usize::MAX);
    }

    /// The same, without waiting for node `odd`.
    pub(super) fn run_but(&mut self, odd: usize) {
        let limit = 20 * self.optimum_ticks() + 5000;
        let over = |n: &Node| !n.alive || n.finished.is_some() || n.failed.is_some();
        while !self.nodes.iter().enumerate().all(|(number, node)| number == odd || over(node)) {
            self.step();
            assert!(self.tick < limit, "no end after {limit} ticks: {}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let node = |n: &Node| format!("{}: {}/{}", n.name, n.exchange.have().len(), self.layout.count());
        self.nodes.iter().map(node).collect::<Vec<_>>().join(", ")
    }

    fn optimum_ticks(&self) -> u64 {
        (self.layout.blob_len() as f64 / self.origin_link) as u64
    }

    /// The last node's end over F/B.
    pub(super) fn makespan(&self) -> f64 {
        let last = self.nodes.iter().filter_map(|node| node.finished).max().unwrap();
        last as f64 / self.optimum_ticks() as f64
    }

    pub(super) fn origin_copies(&self) -> f64 {
        self.origin_bytes / self.layout.blob_len() as f64
    }

    pub(super) fn finished(&self, number: usize) -> bool {
        self.nodes[number].finished.is_some()
    }

    pub(super) fn failure(&self, number: usize) -> Option<&str> {
        self.nodes[number].failed.as_deref()
    }

    /// Who convicted `name` by evidence of its own.
    pub(super) fn convictions(&self, name: &str) -> usize {
        self.nodes.iter().filter(|node| node.convicted.contains(name)).count()
    }

    fn step(&mut self) {
        self.tick += 1;
        self.apply_faults();
        self.connect();
        while self.messages.front().is_some_and(|(at, _)| *at <= self.tick) {
            let (_, message) = self.messages.pop_front().unwrap();
            self.deliver(message);
        }
        self.upload();
        self.read_origin();
        if self.tick.is_multiple_of(50) {
            let now = self.now();
            for swarm in self.swarms.values_mut() {
                swarm.tick(now);
            }
            for node in self.nodes.iter_mut().filter(|node| node.alive) {
                node.exchange.tick(now);
            }
            self.beat();
        }
        for number in 0..self.nodes.len() {
            self.finish(number);
            self.act(number);
        }
        self.tell();
    }

    fn apply_faults(&mut self) {
        let now = self.now();
        for number in 0..self.nodes.len() {
            if self.nodes[number].fault == Fault::Dies(self.tick) {
                self.nodes[number].alive = false;
                self.swarms.remove(&number);
                if let Some((tracker, handle)) = self.nodes[number].line.take()
                    && let Some(swarm) = self.swarms.get_mut(&tracker)
                {
                    swarm.leave(handle, now);
                }
                for node in self.nodes.iter_mut().filter(|n| n.line.is_some_and(|(t, _)| t == number)) {
                    node.line = None;
                }
            }
        }
    }

    /// The tracker is the first node that lives, as a rank would have it.
    fn connect(&mut self) {
        let now = self.now();
        let Some(tracker) = self.nodes.iter().position(|node| node.alive) else { return };
        for number in 0..self.nodes.len() {
            if !self.nodes[number].alive || self.nodes[number].line.is_some() || self.done(number) {
                continue;
            }
            let join = self.nodes[number].exchange.join();
            let others = (0..self.nodes.len()).filter(|&n| self.nodes[n].alive && n != number);
            let polled: Vec<usize> = others.collect();
            let is_new = !self.swarms.contains_key(&tracker);
            let names = polled.iter().map(|&n| self.nodes[n].name.clone()).collect::<Vec<_>>();
            let swarm =
                self.swarms.entry(tracker).or_insert_with(|| Swarm::new(self.layout.blob_len(), names, now));
            let Ok(handle) = swarm.join(&join, now) else { continue };
            if is_new {
                for other in polled {
                    let proven = self.nodes[other].finished.is_some();
                    let pulling = !self.nodes[other].exchange.have().is_empty();
                    let answer = match (proven, pulling) {
                        (true, _) => Answer::Whole,
                        (false, true) => Answer::Pulling,
                        (false, false) => Answer::Nothing,
                    };
                    swarm.answered(&self.nodes[other].exchange.join().from, answer, now);
                }
            }
            self.nodes[number].line = Some((tracker, handle));
            self.nodes[number].exchange.joined();
        }
    }

    fn done(&self, number: usize) -> bool {
        self.nodes[number].finished.is_some() || self.nodes[number].failed.is_some()
    }

    fn beat(&mut self) {
        let now = self.now();
        for node in self.nodes.iter().filter(|node| node.alive) {
            if let Some((tracker, handle)) = node.line
                && let Some(swarm) = self.swarms.get_mut(&tracker)
            {
                swarm.beat(handle, now);
            }
        }
    }

    fn send(&mut self, message: Message) {
        self.messages.push_back((self.tick + 1, message));
    }

    fn tell(&mut self) {
        let mut all = Vec::new();
        for (&tracker, swarm) in &mut self.swarms {
            for (handle, event) in swarm.take_events() {
                let of = |n: &Node| n.line == Some((tracker, handle));
                if let Some(node) = self.nodes.iter().position(of) {
                    all.push(Message::ToPuller { node, tracker, handle, event });
                }
            }
        }
        all.into_iter().for_each(|message| self.send(message));
    }

    fn deliver(&mut self, message: Message) {
        let now = self.now();
        match message {
            Message::ToTracker { tracker, handle, reports } => {
                if let Some(swarm) = self.swarms.get_mut(&tracker) {
                    reports.into_iter().for_each(|report| swarm.report(handle, report, now));
                }
            }
            Message::ToPuller { node, tracker, handle, event } => {
                if self.nodes[node].line == Some((tracker, handle)) && !self.done(node) {
                    self.nodes[node].exchange.told(event, now);
                }
            }
            Message::Ask { to, upload } if !self.nodes[to].alive => {
                let UploadKey { node, index } = upload.key();
                self.send(Message::Answer { to: node, from: to, index, outcome: Fetched::Failed });
            }
            Message::Ask { to, upload } if !self.nodes[to].stored.contains_key(&upload.index) => {
                let UploadKey { node, index } = upload.key();
                self.send(Message::Answer { to: node, from: to, index, outcome: Fetched::Absent });
            }
            Message::Ask { to, upload } => self.nodes[to].waiting.push_back(upload),
            Message::Answer { to, from, index, outcome } => {
                let name = self.nodes[from].name.clone();
                if let Fetched::Good(statement) = outcome {
                    self.nodes[to].stored.insert(index, statement);
                }
                if !self.done(to) {
                    self.nodes[to].exchange.fetched(&name, index, outcome, now);
                }
            }
        }
    }

    fn act(&mut self, number: usize) {
        let mut reports = Vec::new();
        for action in self.nodes[number].exchange.take_actions() {
            let node = &mut self.nodes[number];
            match action {
                Action::Fetch { peer, index, check } => {
                    let to = self.nodes.iter().position(|node| node.name == peer.name).unwrap();
                    let left = self.layout.len_of(index) as f64;
                    let upload = Upload { to: number, index, check, left, since: self.tick };
                    self.send(Message::Ask { to, upload });
                }
                // A chain is a few kilobytes: it comes at once.
                Action::FetchChain { peer } => {
                    let now = self.start + TICK * u32::try_from(self.tick).unwrap();
                    let stored = node.stored.iter();
                    let unfit = stored.filter(|(index, stored)| **stored != piece(**index, 0));
                    let unfit = unfit.map(|(&index, _)| index).collect();
                    node.exchange.chain_checked(&peer.name, Some(unfit), now);
                }
                Action::DropChain => {}
                Action::ReadOrigin { run } => {
                    let left = self.layout.len_of(run.start) as f64;
                    node.reads.push(Read { next: run.start, run, left, beat: self.tick });
                }
                Action::StopOrigin { run } => node.reads.retain(|read| read.run != run),
                Action::Tell(report) => reports.push(report),
                Action::Forget { index } => drop(node.stored.remove(&index)),
                Action::Audit { order } => node.audit = Some((order, 0, 0.0)),
                Action::Judge { voucher, .. } => drop(node.convicted.insert(voucher)),
                Action::Fail { reason } => node.failed = Some(reason),
            }
        }
        if let Some((tracker, handle)) = self.nodes[number].line
            && !reports.is_empty()
            && self.nodes[number].alive
        {
            self.send(Message::ToTracker { tracker, handle, reports });
        }
    }
}

struct UploadKey {
    node: usize,
    index: u32,
}

impl Upload {
    fn key(&self) -> UploadKey {
        UploadKey { node: self.to, index: self.index }
    }
}
