//! The real membership of many nodes in one thread with virtual time and seeds: delay and loss, members that die
//! in silence or by refusing connections, are slow, stall, leave, come back, or are cut off.
//!
//! ```text
//!   mod.rs    the nodes, what is wrong with whom, and the loop
//!   net.rs    what one node's call does at another
//!   figures.rs  what is counted on the way
//! ```
//! A frame is one request, and what the other side has for the caller comes in the answer, as in the daemon.
//! Fixed seeds reproduce exactly: nothing here reads a clock.

mod figures;
mod net;
mod stories;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use self::{figures::Figures, net::Message};
use super::{Action, Change, Contact, Event, Life, Swim};
use crate::mesh::{Member, Role};

/// Greetings of one node at a time.
const ROOM: usize = 64;
/// When a call that nobody answers is given up.
const CALL_MAX: Duration = Duration::from_secs(2);

/// And a sign of life.
const WATCH_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Its packets go nowhere: the machine is gone.
    Silent,
    /// The machine is there and the daemon is not.
    Refusing,
}

struct Node {
    swim: Swim,
    name: String,
    fault: Fault,
    /// Who is in another part hears nothing of this one.
    part: u8,
    /// Added to each of its packets.
    slowness: Duration,
    /// Until then it does nothing.
    stalled_until: Option<Instant>,
    /// When it wakes next.
    wakes_at: Option<Instant>,
    /// How many lives it has had.
    renewals: u32,
}

struct Sim {
    start: Instant,
    now: Instant,
    nodes: Vec<Node>,
    by_address: BTreeMap<String, usize>,
    /// By time and number.
    queue: BTreeMap<(Instant, u64), (usize, Message)>,
    count: u64,
    rng: SmallRng,
    loss: f64,
    figures: Figures,
}

fn member(number: usize, generation: u64) -> Member {
    let [_, a, b, c] = u32::try_from(number).expect("thousands").to_be_bytes();
    let address = format!("10.{a}.{b}.{c}:7442");
    Member {
        name: format!("node-{number}"),
        address,
        zone: Some("rack-7".into()),
        generation,
        role: Role::Peer,
    }
}

impl Sim {
    /// Nodes that know nobody.
    fn new(count: usize, seed: u64) -> Self {
        let (start, mut rng) = (Instant::now(), SmallRng::seed_from_u64(seed));
        let mut nodes = Vec::with_capacity(count);
        for number in 0..count {
            nodes.push(Node::new(member(number, 1_700_000_000_000), rng.random(), start));
        }
        let address = |number: usize| member(number, 1).address;
        let by_address = (0..count).map(|number| (address(number), number)).collect();
        let figures = Figures::new(count);
        let (queue, now) = (BTreeMap::new(), start);
        let mut sim = Self { start, now, nodes, by_address, queue, count: 0, rng, loss: 0.0, figures };
        (0..count).for_each(|number| sim.after(number));
        sim
    }

    /// Nodes that start within the first second and know the first three.
    fn joining(count: usize, seed: u64) -> Self {
        let mut sim = Self::new(count, seed);
        for number in 0..count {
            let after = Duration::from_millis(sim.rng.random_range(0..1000));
            sim.put(after, number, Message::Start);
        }
        sim
    }

    /// Nodes that know each other.
    fn ready(count: usize, seed: u64) -> Self {
        let mut sim = Self::new(count, seed);
        let lives: Vec<Life> = sim.nodes.iter().map(|node| node.swim.me().clone()).collect();
        let (now, lives) = (sim.now, &lives);
        // At 10,000 it is a hundred million entries, and foca looks through its table for each.
        std::thread::scope(|threads| {
            for nodes in sim.nodes.chunks_mut(count.div_ceil(2)) {
                threads.spawn(move || {
                    for node in nodes {
                        let me = node.swim.me().clone();
                        let others = lives.iter().filter(|life| **life != me).cloned();
                        node.swim.apply(others.map(foca::Member::alive), false, now);
                        node.swim.take_changes();
                    }
                });
            }
        });
        (0..count).for_each(|number| sim.after(number));
        sim
    }

    fn seed_contacts(&mut self, number: usize) {
        let contact = |number| {
            let Member { name, address, .. } = member(number, 1);
            Contact { address, names: vec![name] }
        };
        for seed in 0..3.min(self.nodes.len()) {
            let event = Event::Resolved { seed: format!("{seed}"), contacts: [contact(seed)].into() };
            self.nodes[number].swim.apply_event(event, self.now);
        }
    }

    fn put(&mut self, after: Duration, to: usize, message: Message) {
        self.count += 1;
        self.queue.insert((self.now + after, self.count), (to, message));
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Whether it came true before the end; looked at ten times a second.
    fn run_until(&mut self, end: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        let mut look_at = self.now;
        while let Some(((at, _), (to, message))) = self
            .queue
            .first_key_value()
            .map(|(key, _)| *key)
            .and_then(|key| (key.0 <= end).then(|| (key, self.queue.remove(&key).expect("just seen"))))
        {
            if at >= look_at {
                if done(self) {
                    return true;
                }
                look_at = at + Duration::from_millis(100);
            }
            self.now = at;
            self.step(to, message);
        }
        self.now = end;
        done(self)
    }

    fn step(&mut self, number: usize, message: Message) {
        let node = &mut self.nodes[number];
        if node.fault != Fault::None {
            return self.unheard(number, message);
        }
        if net::wanted(&message).is_some_and(|name| name != node.name) {
            return self.refuse(message);
        }
        if let Some(until) = node.stalled_until.filter(|until| *until > self.now) {
            self.put(until - self.now, number, message);
            return;
        }
        self.hear(number, message);
        self.after(number);
    }

    /// Does what the node wants, and wakes it when it has something to do.
    fn after(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let (actions, changes) = (node.swim.take_actions(), node.swim.take_changes());
        node.renewals = node.renewals.max(node.swim.me().revision());
        if let Some(at) = node.swim.next_due(ROOM)
            && node.wakes_at.is_none_or(|wakes_at| at < wakes_at)
        {
            node.wakes_at = Some(at);
            self.put(at.saturating_duration_since(self.now), number, Message::Wake);
        }
        for change in changes {
            self.note(number, &change);
        }
        for action in actions {
            self.act(number, action);
        }
    }

    fn note(&mut self, number: usize, change: &Change) {
        match change {
            Change::Unreachable { member, .. } | Change::Left(member) => {
                let Some(&gone) = self.by_address.get(&member.address) else { return };
                self.figures.noticed(number, gone, self.now);
                if self.nodes[gone].fault == Fault::None && self.nodes[gone].part == self.nodes[number].part {
                    self.figures.false_downs += 1;
                }
            }
            Change::Conflict { .. } => self.figures.conflicts += 1,
            Change::Joined(_)
            | Change::Replaced { .. }
            | Change::Forgotten(_)
            | Change::Silent { .. }
            | Change::Full => {}
        }
    }

    fn act(&mut self, number: usize, action: Action) {
        match action {
            Action::Greet(target) => self.greet(number, target),
            Action::Send { to, frame } => self.send(number, &to, frame),
            Action::Watch { who } => self.watch(number, who),
            Action::Compare { with } => self.compare(number, with),
        }
    }

    /// Whether everybody who is there sees everybody who is there, and nobody else.
    fn is_complete(&self) -> bool {
        let here: Vec<&Node> = self.nodes.iter().filter(|node| node.fault == Fault::None).collect();
        if here.iter().any(|node| node.swim.foca.num_members() + 1 != here.len()) {
            return false;
        }
        let names = || here.iter().map(|node| node.swim.me().fingerprint());
        let all = names().fold(0u64, u64::wrapping_add);
        here.iter().all(|node| {
            node.swim.checks.iter().all(|(_, reason)| reason.is_none())
                && node.swim.comparison().sums.into_iter().fold(0, u64::wrapping_add) == all
        })
    }

    fn kill(&mut self, number: usize, fault: Fault) {
        self.nodes[number].fault = fault;
        self.figures.watch(number, self.now);
    }

    /// A daemon that was killed is started again; `later` by its clock.
    fn restart(&mut self, number: usize, generation: u64) {
        let seed = self.rng.random();
        self.nodes[number] = Node::new(member(number, generation), seed, self.now);
        self.put(Duration::ZERO, number, Message::Start);
        self.after(number);
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

impl Node {
    fn new(me: Member, seed: u64, now: Instant) -> Self {
        Self {
            name: me.name.clone(),
            swim: Swim::new(me, seed, now),
            fault: Fault::None,
            part: 0,
            slowness: Duration::ZERO,
            stalled_until: None,
            wakes_at: None,
            renewals: 0,
        }
    }
}
