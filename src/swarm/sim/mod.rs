//! The real tracker and exchanges in one thread with virtual time and seeds: links with rates, members that
//! die, stall, lie and come late, an origin that is slow or gone.
//!
//! ```text
//!   plan.rs   who takes part, what is wrong with whom
//!   mod.rs    the loop: messages, trackers, time
//!   node.rs   what the shell of one pull does with the actions of its exchange
//!   links.rs  bytes: uploads share links as TCP's flows end up sharing them
//!   origin.rs reads and audits, and the chain at the end
//! ```
//! A tick is 2 ms (more in large crowds); a message takes one. Fixed seeds reproduce exactly: nothing here
//! reads a clock or iterates over a hash map.

mod links;
mod node;
mod origin;
mod plan;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use node::{Node, Upload};
pub(super) use plan::{Fault, Plan};

use super::{
    exchange::Fetched,
    message::{Event, Handle, Report},
    tracker::{Answer, Swarm},
};
use crate::piece::{PieceLayout, Statement};

/// Bytes a second of a link of 100 Mbit/s.
const LINK: f64 = 12_500_000.0;
/// A pull that hears nothing from its tracker for so long looks for the next, as the shell does.
const SILENCE_MAX: Duration = Duration::from_millis(500);
/// How often the shells tick.
const SHELL_TICK: Duration = Duration::from_millis(100);

/// The bytes of piece `index`: true ones, or what the liar numbered so made of them.
fn piece(index: u32, lie: u32) -> Statement {
    blake3::hash(&[index.to_le_bytes(), lie.to_le_bytes()].concat())
}

enum Message {
    ToTracker { tracker: usize, handle: Handle, reports: Vec<Report> },
    ToPuller { node: usize, tracker: usize, events: Vec<Event> },
    Holds { node: usize, tracker: usize },
    Ask { to: usize, upload: Upload },
    Answer { to: usize, from: usize, index: u32, outcome: Fetched, fed: Vec<usize> },
}

/// A swarm, and which node has which number in it.
struct Tracked {
    swarm: Swarm,
    nodes: HashMap<Handle, usize>,
}

pub(super) struct Sim {
    plan: Plan,
    start: Instant,
    /// Ticks since the start.
    tick: u64,
    layout: PieceLayout,
    nodes: Vec<Node>,
    by_name: HashMap<String, usize>,
    /// By the node that runs it.
    swarms: BTreeMap<usize, Tracked>,
    messages: BTreeMap<u64, Vec<Message>>,
    origin_bytes: f64,
    /// Bytes that went from one zone to another, the origin's left out.
    cross_bytes: f64,
    /// Entries that trackers sent and got, for what they cost.
    control_entries: u64,
}

impl Sim {
    pub(super) fn new(plan: Plan) -> Self {
        let layout = PieceLayout::of(plan.blob_len);
        let nodes: Vec<Node> = (0..plan.nodes.len()).map(|number| Node::new(number, &plan)).collect();
        let by_name = nodes.iter().enumerate().map(|(number, node)| (node.name.clone(), number)).collect();
        Self {
            start: Instant::now(),
            tick: 0,
            layout,
            nodes,
            by_name,
            swarms: BTreeMap::new(),
            messages: BTreeMap::new(),
            origin_bytes: 0.0,
            cross_bytes: 0.0,
            control_entries: 0,
            plan,
        }
    }

    fn now(&self) -> Instant {
        self.start + self.plan.tick * u32::try_from(self.tick).expect("minutes of ticks")
    }

    fn ticks(&self, time: Duration) -> u64 {
        u64::try_from(time.as_micros() / self.plan.tick.as_micros()).expect("minutes of ticks").max(1)
    }

    /// Runs until every node that can finish has finished or failed.
    pub(super) fn run(&mut self) -> &mut Self {
        let limit = self.ticks(Duration::from_secs_f64(20.0 * self.bound() + 30.0));
        while !(0..self.nodes.len()).all(|number| self.is_over(number)) {
            self.step();
            assert!(self.tick < limit, "no end after {limit} ticks: {}", self.describe());
        }
        self
    }

    fn is_over(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        !node.alive && node.began || self.done(number) || node.is_odd()
    }

    fn done(&self, number: usize) -> bool {
        self.nodes[number].finished.is_some() || self.nodes[number].failed.is_some()
    }

    fn describe(&self) -> String {
        let unfinished = self.nodes.iter().filter(|node| node.finished.is_none());
        let node = |n: &Node| format!("{}: {}/{}", n.name, n.exchange.have().len(), self.layout.count());
        unfinished.take(10).map(node).collect::<Vec<_>>().join(", ")
    }

    /// F/B in seconds: one copy over one link, the slower of the origin's and a node's.
    fn bound(&self) -> f64 {
        self.layout.blob_len() as f64 / (LINK * self.plan.origin_link.min(1.0))
    }

    /// (1 + floor(log2 N)/M) x F/B: Mundinger, Weber, Weiss 2008.
    pub(super) fn optimum(&self) -> f64 {
        let pullers = self.nodes.iter().filter(|node| !node.seeded).count();
        1.0 + f64::from(pullers.ilog2()) / f64::from(self.layout.count())
    }

    /// The times from begin to end of those that finished over F/B, ascending.
    fn times(&self) -> Vec<f64> {
        let seconds = |ticks: u64| self.plan.tick.as_secs_f64() * ticks as f64 / self.bound();
        let pulled = self.nodes.iter().filter(|node| !node.seeded);
        let mut times: Vec<f64> =
            pulled.filter_map(|node| node.finished.map(|end| seconds(end - node.begins))).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The last node's end over F/B.
    pub(super) fn makespan(&self) -> f64 {
        self.times().last().copied().expect("somebody finished")
    }

    /// When so much of the crowd had finished, over F/B.
    pub(super) fn share_of_crowd(&self, share: f64) -> f64 {
        let times = self.times();
        times[((times.len() - 1) as f64 * share) as usize]
    }

    /// How much the in-order reader of the middle node could have read when nine tenths were there, over F.
    fn front(&self) -> f64 {
        let mut fronts: Vec<f64> = self.nodes.iter().filter_map(|node| node.front_at_ninety).collect();
        fronts.sort_by(f64::total_cmp);
        fronts.get(fronts.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn everybody_holds_the_same(&self) -> bool {
        self.nodes.iter().all(|node| node.exchange.have() == self.nodes[0].exchange.have())
    }

    pub(super) fn origin_copies(&self) -> f64 {
        self.origin_bytes / self.layout.blob_len() as f64
    }

    pub(super) fn cross_copies(&self) -> f64 {
        self.cross_bytes / self.layout.blob_len() as f64
    }

    pub(super) fn finished(&self) -> usize {
        self.nodes.iter().filter(|node| node.finished.is_some()).count()
    }

    pub(super) fn failure(&self, number: usize) -> Option<&str> {
        self.nodes[number].failed.as_deref()
    }

    /// How many convicted `number`.
    pub(super) fn convictions(&self, number: usize) -> usize {
        let name = &self.nodes[number].name;
        self.nodes.iter().filter(|node| node.convicted.contains(name)).count()
    }

    /// Whether its tracker believed it no more in the end.
    pub(super) fn is_discredited(&self, number: usize) -> bool {
        self.nodes[number].exchange.is_discredited()
    }

    /// Whether it knows that it read other bytes than the true ones.
    pub(super) fn knows_that_it_was_misled(&self, number: usize) -> bool {
        self.nodes[number].misled
    }

    /// One line of figures.
    pub(super) fn report(&self) {
        if self.times().is_empty() {
            return println!("{}: nobody finished, origin {:.3} x F", self.plan, self.origin_copies());
        }
        let at = |share: f64| self.share_of_crowd(share);
        println!(
            "{}: p50 {:.3}, p99 {:.3}, max {:.3} x F/B (max {:.3} x optimum), origin {:.3} x F, cross {:.3} x F, \
             {:.1} control entries a node, front {:.2} at 0.9 of F",
            self.plan,
            at(0.5),
            at(0.99),
            at(1.0),
            at(1.0) / self.optimum(),
            self.origin_copies(),
            self.cross_copies(),
            self.control_entries as f64 / self.nodes.len() as f64,
            self.front(),
        );
    }

    fn step(&mut self) {
        self.tick += 1;
        self.apply_faults();
        self.connect();
        while let Some(entry) = self.messages.first_entry().filter(|entry| *entry.key() <= self.tick) {
            for message in entry.remove() {
                self.deliver(message);
            }
        }
        self.upload();
        self.read_origin();
        if self.tick.is_multiple_of(self.ticks(SHELL_TICK)) {
            self.shells_tick();
        }
        for number in 0..self.nodes.len() {
            self.prove(number);
            self.act(number);
        }
        self.tell();
    }

    fn shells_tick(&mut self) {
        let now = self.now();
        for tracked in self.swarms.values_mut() {
            tracked.swarm.tick(now);
        }
        let silence = self.ticks(SILENCE_MAX);
        let frozen: Vec<usize> =
            (0..self.nodes.len()).filter(|&number| self.nodes[number].is_frozen(self.tick)).collect();
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            if !node.alive || frozen.contains(&number) {
                continue;
            }
            node.exchange.tick(now);
            let Some((tracker, handle)) = node.line else { continue };
            if !frozen.contains(&tracker) {
                node.heard_at = self.tick;
            } else if self.tick - node.heard_at > silence {
                node.line = None;
                continue;
            }
            if let Some(tracked) = self.swarms.get_mut(&tracker) {
                tracked.swarm.beat(handle, now);
            }
        }
    }

    fn apply_faults(&mut self) {
        for number in 0..self.nodes.len() {
            if self.nodes[number].fault != Fault::Dies(self.tick) {
                continue;
            }
            self.nodes[number].alive = false;
            self.swarms.remove(&number);
            self.leaves(number);
            for node in self.nodes.iter_mut().filter(|node| node.line.is_some_and(|(at, _)| at == number)) {
                node.line = None;
            }
        }
    }

    fn gave_up(&mut self, number: usize, reason: String) {
        self.nodes[number].failed = Some(reason);
        self.leaves(number);
    }

    fn leaves(&mut self, number: usize) {
        let now = self.now();
        if let Some((tracker, handle)) = self.nodes[number].line.take()
            && let Some(tracked) = self.swarms.get_mut(&tracker)
        {
            tracked.swarm.leave(handle, now);
        }
    }

    /// The tracker is the first node that answers, as a rank would have it.
    fn connect(&mut self) {
        let now = self.now();
        let answers = |node: &Node| node.alive && !node.is_frozen(self.tick);
        let Some(tracker) = self.nodes.iter().position(answers) else { return };
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let waits = node.finished.is_some() || node.failed.is_some() || node.line.is_some();
            if !node.alive || node.begins > self.tick || waits || node.is_frozen(self.tick) {
                continue;
            }
            node.began = true;
            let join = node.exchange.join();
            if !self.swarms.contains_key(&tracker) {
                self.begin_swarm(tracker, number);
            }
            let tracked = self.swarms.get_mut(&tracker).expect("just begun");
            let Ok(handle) = tracked.swarm.join(&join, now) else { continue };
            tracked.nodes.insert(handle, number);
            let node = &mut self.nodes[number];
            node.line = Some((tracker, handle));
            node.heard_at = self.tick;
            node.unsaid.clear();
            node.exchange.joined();
        }
    }

    fn begin_swarm(&mut self, tracker: usize, first: usize) {
        let now = self.now();
        let others = (0..self.nodes.len()).filter(|&other| other != first && self.nodes[other].alive);
        let polled: Vec<usize> = others.take(128).collect();
        let names: Vec<String> = polled.iter().map(|&other| self.nodes[other].name.clone()).collect();
        let swarm = Swarm::new(self.layout.blob_len(), names, now);
        self.swarms.insert(tracker, Tracked { swarm, nodes: HashMap::new() });
        for other in polled {
            match self.plan.nodes[other].answers_after {
                0 => self.holds(other, tracker),
                after => {
                    let question = Message::Holds { node: other, tracker };
                    self.messages.entry(self.tick + after).or_default().push(question);
                }
            }
        }
    }

    fn holds(&mut self, number: usize, tracker: usize) {
        let now = self.now();
        let node = &self.nodes[number];
        let answer = match (node.finished.is_some(), node.exchange.have().is_empty()) {
            (true, _) => Answer::Whole,
            (false, false) => Answer::Pulling,
            (false, true) => Answer::Nothing,
        };
        let member = node.exchange.join().from;
        if let Some(tracked) = self.swarms.get_mut(&tracker) {
            tracked.swarm.answered(&member, answer, now);
        }
    }

    fn send(&mut self, message: Message) {
        let delay = self.ticks(self.plan.delay);
        self.messages.entry(self.tick + delay).or_default().push(message);
    }

    /// What the trackers have to say, in one batch a member.
    fn tell(&mut self) {
        let mut all: BTreeMap<(usize, usize), Vec<Event>> = BTreeMap::new();
        for (&tracker, tracked) in &mut self.swarms {
            for (handle, event) in tracked.swarm.take_events() {
                if let Some(&node) = tracked.nodes.get(&handle) {
                    all.entry((tracker, node)).or_default().push(event);
                }
            }
        }
        for ((tracker, node), events) in all {
            self.control_entries += events.len() as u64;
            self.send(Message::ToPuller { node, tracker, events });
        }
    }

    fn deliver(&mut self, message: Message) {
        let now = self.now();
        match message {
            Message::ToTracker { tracker, handle, reports } => {
                if let Some(tracked) = self.swarms.get_mut(&tracker) {
                    self.control_entries += reports.len() as u64;
                    tracked.swarm.reports(handle, reports, now);
                }
            }
            Message::ToPuller { node, tracker, events } => {
                if self.nodes[node].line.is_some_and(|(at, _)| at == tracker) && !self.done(node) {
                    self.nodes[node].exchange.told(events, now);
                }
            }
            Message::Holds { node, tracker } => self.holds(node, tracker),
            Message::Ask { to, upload } => self.asked(to, upload),
            Message::Answer { to, from, index, outcome, fed } => {
                let name = self.nodes[from].name.clone();
                if let Fetched::Good(statement) = outcome {
                    self.nodes[to].stored.insert(index, statement);
                }
                if !self.done(to) {
                    let fed: Vec<String> = fed.iter().map(|&fed| self.nodes[fed].name.clone()).collect();
                    if !fed.is_empty() {
                        self.nodes[to].exchange.referred(index, fed);
                    }
                    self.nodes[to].exchange.fetched(&name, index, outcome, now);
                }
            }
        }
    }
}
