//! Many trackers share one registry host: real swarms, budgets and keepers with virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Ask, Budget, Keeper, SHARE_LIFE, Share, divide};
use crate::{
    mesh::{Member, Role},
    oci::{Algorithm, Digest},
    swarm::{
        message::{Event, Failure, Handle, Held, Join, Report, Run},
        tracker::Swarm,
    },
};

const HOST: &str = "r.local";
const LIMIT: u32 = 12;
const TICK: Duration = Duration::from_millis(5);
/// From a tracker to a keeper, and back.
const DELAY: Duration = Duration::from_millis(10);
/// As in the shell: a tenth of a second.
const DIVIDE_EVERY: u64 = 20;
const AVOIDED: Duration = Duration::from_millis(500);
/// What one connection brings of a piece of 256 KiB.
const PIECE_TIME: Duration = Duration::from_millis(20);
const BLOB_LEN: u64 = 8 << 20;
/// Members of each swarm: enough that no reader is alone.
const PULLERS: u32 = 8;

/// A lease that is being read.
struct Reading {
    digest: usize,
    reader: Handle,
    lease: Run,
    /// What is left of it.
    run: Run,
    next_at: Instant,
}

/// Members, each of which tracks one digest and may be asked as a keeper.
struct World {
    start: Instant,
    now: Instant,
    tick: u64,
    swarms: Vec<Swarm>,
    budgets: Vec<Budget>,
    keepers: Vec<Keeper>,
    /// Keepers in the order of the host's rank; the dead ones answer nobody.
    dead: BTreeSet<usize>,
    avoided: BTreeMap<usize, BTreeSet<usize>>,
    asks: Vec<(Instant, usize, usize, Ask)>,
    answers: Vec<(Instant, usize, Ask, Option<Share>)>,
    readings: Vec<Reading>,
    held: BTreeMap<usize, u32>,
    most_readings: usize,
    /// The registry answers 429 from the first moment to the second.
    throttles: Option<(Instant, Instant)>,
    refused: Vec<Instant>,
}

impl World {
    fn new(digests: usize) -> Self {
        let start = Instant::now();
        let mut world = Self {
            start,
            now: start,
            tick: 0,
            swarms: Vec::new(),
            budgets: (0..digests).map(|_| Budget::default()).collect(),
            keepers: (0..digests).map(|_| Keeper::new(LIMIT)).collect(),
            dead: BTreeSet::new(),
            avoided: BTreeMap::new(),
            asks: Vec::new(),
            answers: Vec::new(),
            readings: Vec::new(),
            held: BTreeMap::new(),
            most_readings: 0,
            throttles: None,
            refused: Vec::new(),
        };
        for digest in 0..digests {
            let mut swarm = Swarm::new(BLOB_LEN, [], start);
            swarm.allow(0, None, start);
            for puller in 0..PULLERS {
                swarm.join(&join(digest, puller), start).unwrap();
            }
            world.swarms.push(swarm);
        }
        (0..digests).for_each(|node| world.share(node));
        world
    }

    fn run(&mut self, mut until: impl FnMut(&Self) -> bool) {
        while !until(self) {
            self.step();
            assert!(self.seconds() < 120.0, "no end: {} of {} digests", self.done(), self.swarms.len());
        }
    }

    fn seconds(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }

    fn done(&self) -> usize {
        let pieces = u32::try_from(BLOB_LEN >> 18).unwrap();
        self.held.values().filter(|held| **held == pieces).count()
    }

    fn all_done(&self) -> bool {
        self.done() == self.swarms.len()
    }

    fn step(&mut self) {
        self.now += TICK;
        self.tick += 1;
        let now = self.now;
        let (come, later): (Vec<_>, _) = self.asks.drain(..).partition(|(at, ..)| *at <= now);
        self.asks = later;
        for (_, keeper, from, ask) in come {
            let alive = !self.dead.contains(&keeper);
            let share = alive.then(|| self.keepers[keeper].ask(&format!("node-{from}"), &ask, now));
            if share.is_none() {
                self.avoided.entry(from).or_default().insert(keeper);
            }
            let wait = if alive { DELAY } else { AVOIDED };
            self.answers.push((now + wait, from, ask, share));
        }
        let (come, later): (Vec<_>, _) = self.answers.drain(..).partition(|(at, ..)| *at <= now);
        self.answers = later;
        for (_, from, ask, share) in come {
            self.budgets[from].answered(&ask, share, now);
            self.share(from);
        }
        for node in 0..self.swarms.len() {
            if self.tick % DIVIDE_EVERY == node as u64 % DIVIDE_EVERY {
                (1..=PULLERS).for_each(|handle| self.swarms[node].heard(handle, now));
                self.swarms[node].tick(now);
                self.share(node);
            }
        }
        self.read();
        self.obey();
        self.most_readings = self.most_readings.max(self.readings.len());
    }

    fn share(&mut self, node: usize) {
        self.budgets[node].divide(self.swarms[node..=node].iter_mut(), self.now);
        for ask in self.budgets[node].due(self.now) {
            let avoided = self.avoided.get(&node).cloned().unwrap_or_default();
            let keeper = (0..).find(|keeper| !avoided.contains(keeper)).unwrap();
            self.asks.push((self.now + DELAY, keeper, node, ask));
        }
    }

    fn read(&mut self) {
        let (now, throttles) = (self.now, self.throttles);
        let mut left = Vec::new();
        for mut reading in std::mem::take(&mut self.readings) {
            let Reading { digest, reader, ref lease, ref mut run, ref mut next_at } = reading;
            let swarm = &mut self.swarms[digest];
            if let Some((from, until)) = throttles
                && *next_at > from
                && now < until
            {
                let failure = Failure::Later { retry_after: until - now };
                let reason = "origin_throttled".to_owned();
                self.refused.push(now);
                swarm.reports(reader, [Report::Returned { run: lease.clone(), failure, reason }], now);
                continue;
            }
            if *next_at <= now {
                let statement = blake3::hash(&run.start.to_le_bytes());
                let held = Held { index: run.start, statement, voucher: format!("puller-{reader}") };
                swarm.reports(reader, [Report::Held(held)], now);
                *self.held.entry(digest).or_default() += 1;
                run.start += 1;
                *next_at = now + PIECE_TIME;
            }
            if run.start < run.end {
                left.push(reading);
            }
        }
        self.readings.extend(left);
    }

    fn obey(&mut self) {
        for (digest, swarm) in self.swarms.iter_mut().enumerate() {
            for (reader, event) in swarm.take_events() {
                if let Event::Lease(run) = event {
                    let (lease, next_at) = (run.clone(), self.now + PIECE_TIME);
                    self.readings.push(Reading { digest, reader, lease, run, next_at });
                }
            }
        }
    }
}

fn join(digest: usize, puller: u32) -> Join {
    Join {
        digest: Digest::of(Algorithm::Sha256, &digest.to_le_bytes()),
        blob_len: BLOB_LEN,
        from: Member {
            name: format!("puller-{}", puller + 1),
            address: "127.0.0.1:7442".into(),
            zone: None,
            generation: 1,
            role: Role::Peer,
        },
        held: 0,
        reading: Vec::new(),
        origin: Some(HOST.to_owned()),
        whole: false,
    }
}

#[test]
fn forty_layers_ask_their_registry_by_a_dozen_readers_and_none_starves() {
    let mut world = World::new(40);
    let mut first_done = None;
    world.run(|world| {
        if world.done() > 0 {
            first_done.get_or_insert(world.seconds());
        }
        world.all_done()
    });
    // Each piece takes its connection 20 ms: what twelve that never idle would take.
    let least = 40.0 * 32.0 * PIECE_TIME.as_secs_f64() / f64::from(LIMIT);
    println!(
        "40 layers: {} readers at most, all read after {:.2} s, {:.2} x what twelve need; the first after {:.2} s",
        world.most_readings,
        world.seconds(),
        world.seconds() / least,
        first_done.unwrap(),
    );
    assert!(world.most_readings <= LIMIT as usize, "{}", world.most_readings);
    assert!(world.seconds() < 3.0 * least, "{}", world.seconds());
}

#[test]
fn one_layer_has_all_the_readers_that_it_can_use_after_one_round_trip() {
    let mut world = World::new(1);
    world.run(|world| world.readings.len() >= 6);
    assert!(world.now - world.start <= 4 * DELAY, "{}", world.seconds());
    world.run(World::all_done);
}

#[test]
fn whoever_keeps_a_host_may_die() {
    let mut world = World::new(40);
    world.run(|world| world.seconds() > 0.5);
    assert!(world.most_readings <= LIMIT as usize);
    world.dead.insert(0);
    world.run(|world| world.seconds() > 2.0);
    // For a moment somebody may have what somebody else has not given back yet, or his first one.
    println!("the keeper died: {} readers at most", world.most_readings);
    assert!(world.most_readings <= 2 * LIMIT as usize, "{}", world.most_readings);
    world.most_readings = 0;
    world.run(World::all_done);
    assert!(world.most_readings <= LIMIT as usize, "{}", world.most_readings);
}

#[test]
fn a_throttle_quietens_all_digests_for_as_long_as_it_says() {
    for keeper_dies in [false, true] {
        let mut world = World::new(40);
        world.run(|world| world.seconds() > 0.4);
        let until = world.now + Duration::from_secs(5);
        world.throttles = Some((world.now, until));
        world.run(|world| world.now > until - Duration::from_secs(4));
        let refused = world.refused.len();
        // Who is out when it begins, and what was granted before all have heard of it.
        assert!(refused <= 2 * LIMIT as usize, "{refused}");
        if keeper_dies {
            world.dead.insert(0);
        }
        world.run(|world| world.now >= until);
        assert_eq!(world.refused.len(), refused, "asked in spite of Retry-After");
        world.most_readings = 0;
        world.run(|world| world.now >= until + Duration::from_secs(1));
        println!("throttled: {refused} refused, then {} readers at most", world.most_readings);
        if !keeper_dies {
            assert!(world.most_readings <= LIMIT as usize / 2, "{}", world.most_readings);
        }
        world.run(World::all_done);
        assert!(world.most_readings <= LIMIT as usize, "{}", world.most_readings);
    }
}

#[test]
fn a_share_ends_with_its_owner_and_with_what_it_was_for() {
    let now = Instant::now();
    let mut keeper = Keeper::new(LIMIT);
    let ask = |wants, has| Ask { host: HOST.into(), wants, has, quiet: Duration::ZERO, throttled: false };
    assert_eq!(keeper.ask("a", &ask(20, 0), now).readers, 9, "some are left for others");
    assert_eq!(keeper.ask("b", &ask(20, 0), now).readers, 3);
    assert_eq!(keeper.ask("c", &ask(20, 0), now).readers, 0, "all are out");
    assert_eq!(keeper.ask("c", &ask(0, 0), now).readers, 0);
    assert_eq!(keeper.ask("a", &ask(20, 9), now).readers, 6);
    assert_eq!(keeper.ask("b", &ask(20, 3), now).readers, 3, "they are out still");
    assert_eq!(keeper.ask("a", &ask(20, 6), now).readers, 6);
    assert_eq!(keeper.ask("b", &ask(20, 3), now).readers, 6);
    assert_eq!(keeper.ask("a", &ask(0, 0), now).readers, 0);
    assert_eq!(keeper.ask("b", &ask(20, 6), now).readers, 9);
    assert_eq!(keeper.ask("d", &ask(20, 0), now + SHARE_LIFE).readers, 9, "b has gone");
}

#[test]
fn shares_come_out_even_or_favour_the_first() {
    assert_eq!(divide(12, &[6, 6, 6, 6]), [3, 3, 3, 3]);
    assert_eq!(divide(12, &[1, 20, 20]), [1, 6, 5]);
    assert_eq!(divide(2, &[6, 6, 6]), [1, 1, 0]);
    assert_eq!(divide(12, &[2, 3]), [2, 3]);
    assert!(divide(12, &[]).is_empty());
}

#[test]
fn asks_survive_the_wire_within_their_limits() {
    let quiet = Duration::from_millis(1500);
    let ask = Ask { host: HOST.into(), wants: 6, has: 2, quiet, throttled: true };
    assert_eq!(Ask::from_wire(ask.to_wire()), Ok(ask.clone()));
    assert!(Ask::from_wire(Ask { host: String::new(), ..ask.clone() }.to_wire()).is_err());
    assert!(Ask::from_wire(Ask { host: "h".repeat(256), ..ask.clone() }.to_wire()).is_err());
    assert!(Ask::from_wire(Ask { wants: 1025, ..ask.clone() }.to_wire()).is_err());
    let long = Ask { quiet: Duration::from_secs(3600), ..ask };
    assert_eq!(Ask::from_wire(long.to_wire()).unwrap().quiet, Duration::from_secs(60));
    let share = Share { readers: 3, quiet };
    assert_eq!(Share::from_wire(share.to_wire()), share);
}
