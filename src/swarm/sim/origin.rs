//! What is read from the origin, and what comes of it.

use super::{Fault, LINK, Sim, piece};
use crate::swarm::message::{Run, Verdict};

/// Ticks between two words to the tracker that bytes come.
const BEAT_TICKS: u64 = 250;

pub(super) struct Read {
    pub(super) run: Run,
    pub(super) next: u32,
    pub(super) left: f64,
    pub(super) beat: u64,
    /// The tick of its first byte.
    pub(super) begins: u64,
}

impl Sim {
    /// Connections over which the origin sends something to this node.
    fn reads_of(&self, number: usize) -> usize {
        let node = &self.nodes[number];
        if !node.alive || node.is_frozen(self.tick) {
            return 0;
        }
        let reads = node.reads.iter().filter(|read| read.begins <= self.tick).count();
        reads + usize::from(node.audit.is_some())
    }

    /// Bytes a tick that the origin sends over each of its connections.
    fn share(&self) -> f64 {
        let all: usize = (0..self.nodes.len()).map(|number| self.reads_of(number)).sum();
        LINK * self.plan.origin_link * self.plan.tick.as_secs_f64() / all.max(1) as f64
    }

    /// Bytes a tick that each node has from the origin.
    pub(super) fn origin_rates(&self) -> Vec<f64> {
        let share = self.share();
        (0..self.nodes.len()).map(|number| share * self.reads_of(number) as f64).collect()
    }

    pub(super) fn read_origin(&mut self) {
        let (now, share) = (self.now(), self.share());
        let failure = self.plan.origin_failure.clone().filter(|(at, ..)| *at <= self.tick);
        for number in 0..self.nodes.len() {
            if let Some((_, failure, reason)) = &failure {
                for read in std::mem::take(&mut self.nodes[number].reads) {
                    let why = Some((failure.clone(), (*reason).to_owned()));
                    self.nodes[number].exchange.read_ended(&read.run, why, now);
                }
            } else if self.nodes[number].alive && !self.nodes[number].is_frozen(self.tick) {
                self.read(number, share);
                self.audit(number, share);
            }
        }
    }

    /// Which bytes the origin has for this node.
    fn lie_of(&self, number: usize) -> u32 {
        if self.nodes[number].fault == Fault::LyingReader { number as u32 + 1 } else { 0 }
    }

    fn read(&mut self, number: usize, share: f64) {
        let (now, tick) = (self.now(), self.tick);
        let lie = self.lie_of(number);
        let node = &mut self.nodes[number];
        let mut ended = Vec::new();
        for read in node.reads.iter_mut().filter(|read| read.begins <= tick) {
            read.left -= share;
            self.origin_bytes += share;
            if tick - read.beat >= BEAT_TICKS {
                read.beat = tick;
                node.exchange.reading(read.next);
            }
            if read.left <= 0.0 {
                let statement = piece(read.next, lie);
                node.vouched.entry(read.next).or_insert(statement);
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
    }

    fn audit(&mut self, number: usize, share: f64) {
        let (now, lie) = (self.now(), self.lie_of(number));
        let node = &mut self.nodes[number];
        let Some((order, next, got)) = &mut node.audit else { return };
        *got += share;
        self.origin_bytes += share;
        if *got < self.layout.piece_len() as f64 {
            return;
        }
        *got = 0.0;
        let (index, stated, _) = order[*next];
        node.exchange.reading(index);
        *next += 1;
        let verdict = match piece(index, lie) {
            truth if truth != stated => Some(Verdict::Differs { index, statement: truth }),
            _ => (*next == order.len()).then_some(Verdict::Clean),
        };
        if verdict.is_some() {
            node.audit = None;
            node.exchange.audited(verdict, now);
        }
    }

    /// The chain: closes when all is here and true.
    pub(super) fn prove(&mut self, number: usize) {
        let now = self.now();
        let node = &mut self.nodes[number];
        if !node.alive || node.finished.is_some() || node.failed.is_some() {
            return;
        }
        let is_full = node.exchange.have().is_full();
        if !is_full {
            let (have, all) = (node.exchange.have(), self.layout.count());
            let front = have.prefix_len();
            if have.len() * 10 >= all * 9 && node.front_at_ninety.is_none() {
                node.front_at_ninety = Some(f64::from(front) / f64::from(all));
            }
            node.exchange.front(front);
            node.unclosed = false;
            return;
        }
        if (0..self.layout.count()).all(|index| node.stored[&index] == piece(index, 0)) {
            node.finished = Some(self.tick);
            node.exchange.proven();
        } else if !std::mem::replace(&mut node.unclosed, true) {
            node.exchange.unclosed(now);
        }
    }
}
