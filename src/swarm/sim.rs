//! The real tracker and exchanges in one thread with virtual time and seeds: links with rates, members that
//! die, stall and lie. A tick is 2 ms; a message takes one.
//!
//! A node's upload is shared by its slots, its download by what it receives, the origin's link by its readers.

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

    fn upload(&mut self) {
        let (tick, now) = (self.tick, self.now());
        let mut answers = Vec::new();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            while node.uploads.len() < SLOTS
                && let Some(upload) = node.waiting.pop_front()
            {
                node.uploads.push(upload);
            }
            while node.waiting.front().is_some_and(|first| tick - first.since > SLOT_WAIT_TICKS) {
                let upload = node.waiting.pop_front().unwrap();
                answers.push((upload.to, number, upload.index, Fetched::Busy));
            }
        }
        let mut rates = self.rates().into_iter();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let stalled = matches!(node.fault, Fault::Stalls(at) if tick >= at);
            for upload in &mut node.uploads {
                upload.left -= rates.next().expect("one for each upload");
            }
            let alive = node.alive;
            let over = |upload: &mut Upload| {
                upload.left <= 0.0 || !alive || (stalled && tick - upload.since > STALL_TICKS)
            };
            for upload in node.uploads.extract_if(.., over) {
                let outcome = match node.stored.get(&upload.index) {
                    _ if upload.left > 0.0 => Fetched::Failed,
                    None => Fetched::Absent,
                    Some(_) if node.fault == Fault::CorruptRelay => Fetched::Wrong,
                    Some(&stored) if upload.check == Check::Statement(stored) => Fetched::Good(stored),
                    Some(&stored) if upload.check == Check::Chain && stored == piece(upload.index, 0) => {
                        Fetched::Good(stored)
                    }
                    Some(_) => Fetched::Wrong,
                };
                answers.push((upload.to, number, upload.index, outcome));
            }
        }
        for (to, from, index, outcome) in answers {
            self.send(Message::Answer { to, from, index, outcome });
        }
        // The shell reports requests without a byte after half a second.
        let slow: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| matches!(node.fault, Fault::Stalls(at) if tick >= at))
            .flat_map(|node| node.uploads.iter().map(|u| (u.to, node.name.clone(), u.index, u.since)))
            .filter(|(.., since)| tick - since == 250)
            .collect();
        for (to, name, index, _) in slow {
            self.nodes[to].exchange.slow(&name, index, now);
        }
    }

    /// Bytes of each upload in this tick: links are filled in rounds, as TCP's flows end up sharing them.
    fn rates(&self) -> Vec<f64> {
        const ROUNDS: usize = 4;
        let all: Vec<(usize, usize, bool)> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(from, node)| {
                node.uploads.iter().map(move |upload| (from, upload.to, self.sends(from)))
            })
            .collect();
        let mut rates = vec![0.0; all.len()];
        let mut up = vec![LINK; self.nodes.len()];
        let mut down: Vec<f64> =
            (0..self.nodes.len()).map(|number| LINK - self.origin_rate(number)).collect();
        for _ in 0..ROUNDS {
            let open = |&(from, to, sends): &(usize, usize, bool)| sends && up[from] > 1.0 && down[to] > 1.0;
            let is_open: Vec<bool> = all.iter().map(open).collect();
            let (mut senders, mut receivers) = (vec![0.0; up.len()], vec![0.0; up.len()]);
            for ((from, to, _), _) in all.iter().zip(&is_open).filter(|(_, open)| **open) {
                senders[*from] += 1.0;
                receivers[*to] += 1.0;
            }
            let (up_now, down_now) = (up.clone(), down.clone());
            for (number, (from, to, _)) in all.iter().enumerate().filter(|(number, _)| is_open[*number]) {
                let more = (up_now[*from] / senders[*from]).min(down_now[*to] / receivers[*to]);
                rates[number] += more;
                up[*from] -= more;
                down[*to] -= more;
            }
        }
        rates
    }

    fn sends(&self, number: usize) -> bool {
        self.nodes[number].alive && !matches!(self.nodes[number].fault, Fault::Stalls(at) if self.tick >= at)
    }

    /// Connections over which the origin sends something to this node.
    fn reads_of(&self, number: usize) -> usize {
        let node = &self.nodes[number];
        if self.sends(number) { node.reads.len() + usize::from(node.audit.is_some()) } else { 0 }
    }

    fn origin_rate(&self, number: usize) -> f64 {
        let all: usize = (0..self.nodes.len()).map(|number| self.reads_of(number)).sum();
        self.origin_link * self.reads_of(number) as f64 / all.max(1) as f64
    }

    fn read_origin(&mut self) {
        let (now, tick) = (self.now(), self.tick);
        if let Some((failure, reason)) = self.origin_failure.clone() {
            for node in &mut self.nodes {
                for read in std::mem::take(&mut node.reads) {
                    node.exchange.read_ended(&read.run, Some((failure.clone(), reason.to_owned())), now);
                }
            }
            return;
        }
        let readers: usize = (0..self.nodes.len()).map(|number| self.reads_of(number)).sum();
        let share = self.origin_link / readers.max(1) as f64;
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let stalled = matches!(node.fault, Fault::Stalls(at) if tick >= at);
            if !node.alive || stalled {
                continue;
            }
            let lie = if node.fault == Fault::LyingReader { number as u32 + 1 } else { 0 };
            let mut ended = Vec::new();
            for read in &mut node.reads {
                read.left -= share;
                self.origin_bytes += share;
                if tick - read.beat >= 250 {
                    read.beat = tick;
                    node.exchange.reading(read.next);
                }
                if read.left <= 0.0 {
                    let statement = piece(read.next, lie);
                    node.stored.insert(read.next, statement);
                    node.exchange.read(read.next, statement, now);
                    read.next += 1;
                    if read.next == read.run.end {
                        ended.push(read.run.clone());
                    } else {
                        read.left += self.layout.len_of(read.next) as f64;
                    }
                }
            }
            node.reads.retain(|read| read.next < read.run.end);
            for run in ended {
                node.exchange.read_ended(&run, None, now);
            }
            self.audit(number, share);
        }
    }

    fn audit(&mut self, number: usize, share: f64) {
        let (now, node) = (self.now(), &mut self.nodes[number]);
        let Some((order, next, got)) = &mut node.audit else { return };
        *got += share;
        self.origin_bytes += share;
        if *got < self.layout.piece_len() as f64 {
            return;
        }
        *got = 0.0;
        let (index, stated, voucher) = order[*next].clone();
        node.exchange.reading(index);
        *next += 1;
        let verdict = match piece(index, 0) {
            truth if truth != stated => {
                node.convicted.insert(voucher);
                Some(Verdict::Differs { index, statement: truth })
            }
            _ => (*next == order.len()).then_some(Verdict::Clean),
        };
        if verdict.is_some() {
            node.audit = None;
            node.exchange.audited(verdict, now);
        }
    }

    /// The chain: closes when all is here and true.
    fn finish(&mut self, number: usize) {
        let now = self.now();
        let node = &mut self.nodes[number];
        let is_full = node.exchange.have().is_full();
        if !node.alive || node.finished.is_some() || !is_full {
            let front = node.exchange.have().prefix_len();
            node.exchange.front(front);
            node.unclosed &= is_full;
            return;
        }
        if (0..self.layout.count()).all(|index| node.stored[&index] == piece(index, 0)) {
            node.finished = Some(self.tick);
            node.exchange.proven();
        } else if !std::mem::replace(&mut node.unclosed, true) && node.failed.is_none() {
            node.exchange.unclosed(now);
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
