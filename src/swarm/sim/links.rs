//! Bytes on the simulated links.

use std::time::Duration;

use super::{Fault, LINK, Message, Sim, node::Upload, piece};
use crate::swarm::{
    exchange::{Check, Fetched},
    message::REFERRED_MAX,
};

/// As the peer door has them.
const SLOTS: usize = 12;
const SLOT_WAIT: Duration = Duration::from_millis(30);
const FED_MAX: usize = 512;
/// A request without a byte for so long is called slow, and fails after so long, as in the shell.
const SLOW: Duration = Duration::from_millis(500);
const STALL: Duration = Duration::from_secs(5);
/// How often the shell says that bytes come.
const BEAT: Duration = Duration::from_millis(500);
/// Flows that a link between zones carries at a time where it is said to be unfair; the others wait, as behind a full
/// queue.
const CROSSING: usize = 3;
/// Rounds in which links are filled.
const ROUNDS: usize = 4;

/// A transfer: from whom to whom, between zones or not.
struct Flow {
    from: usize,
    to: usize,
    crosses: bool,
    open: bool,
    since: u64,
    rate: f64,
}

impl Sim {
    pub(super) fn asked(&mut self, to: usize, upload: Upload) {
        let (node, index) = (upload.to, upload.index);
        let holder = &mut self.nodes[to];
        let refusal = match () {
            () if !holder.alive => Fetched::Failed,
            // Who gives up gives no more.
            () if holder.failed.is_some() => Fetched::Absent,
            () if holder.fault == Fault::Leech || !holder.stored.contains_key(&index) => Fetched::Absent,
            () => return holder.waiting.push_back(upload),
        };
        self.send(Message::Answer { to: node, from: to, index, outcome: refusal, fed: Vec::new() });
    }

    pub(super) fn upload(&mut self) {
        let slot_wait = self.ticks(SLOT_WAIT);
        let mut answers = Vec::new();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            while node.uploads.len() < SLOTS
                && let Some(upload) = node.waiting.pop_front()
            {
                node.uploads.push(upload);
            }
            while node.waiting.front().is_some_and(|first| self.tick - first.since > slot_wait) {
                let upload = node.waiting.pop_front().expect("there is a first");
                answers.push((upload.to, number, upload.index, Fetched::Busy));
            }
        }
        let (slow, stall, beat) = (self.ticks(SLOW), self.ticks(STALL), self.ticks(BEAT));
        let mut rates = self.rates().into_iter();
        let (mut slow_ones, mut moving) = (Vec::new(), Vec::new());
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let (frozen, alive) = (node.is_frozen(self.tick), node.alive);
            for upload in &mut node.uploads {
                upload.left -= rates.next().expect("one for each upload");
                let began = upload.left < self.layout.len_of(upload.index) as f64;
                let since = self.tick - upload.since;
                if !began && since == slow {
                    slow_ones.push((upload.to, node.name.clone(), upload.index));
                } else if began && !frozen && since.is_multiple_of(beat) {
                    moving.push((upload.to, node.name.clone(), upload.index));
                }
            }
            let over = |upload: &mut Upload| {
                upload.left <= 0.0 || !alive || (frozen && self.tick - upload.since > stall)
            };
            let ended: Vec<Upload> = node.uploads.extract_if(.., over).collect();
            for upload in ended {
                answers.push((upload.to, number, upload.index, self.outcome(number, &upload)));
            }
        }
        for (to, from, index, outcome) in answers {
            let fed = self.note_fed(from, to, index, outcome);
            self.send(Message::Answer { to, from, index, outcome, fed });
        }
        let now = self.now();
        for (to, name, index) in slow_ones {
            self.nodes[to].exchange.slow(&name, index, now);
        }
        for (to, name, index) in moving {
            self.nodes[to].exchange.fetching(&name, index, now);
        }
    }

    /// Whom a node that is busy names; whoever has got the piece is noted.
    fn note_fed(&mut self, from: usize, to: usize, index: u32, outcome: Fetched) -> Vec<usize> {
        let fed = &mut self.nodes[from].fed;
        match outcome {
            Fetched::Busy => {
                let others = fed.iter().rev().filter(|(piece, other)| *piece == index && *other != to);
                others.map(|(_, other)| *other).take(REFERRED_MAX).collect()
            }
            Fetched::Good(_) => {
                if fed.len() >= FED_MAX {
                    fed.pop_front();
                }
                fed.push_back((index, to));
                Vec::new()
            }
            Fetched::Wrong | Fetched::Absent | Fetched::Failed => Vec::new(),
        }
    }

    fn outcome(&self, from: usize, upload: &Upload) -> Fetched {
        let node = &self.nodes[from];
        match node.stored.get(&upload.index) {
            _ if upload.left > 0.0 => Fetched::Failed,
            None => Fetched::Absent,
            Some(_) if node.fault == Fault::CorruptRelay => Fetched::Wrong,
            Some(&stored) if upload.check == Check::Statement(stored) => Fetched::Good(stored),
            Some(&stored) if upload.check == Check::Chain && stored == piece(upload.index, 0) => {
                Fetched::Good(stored)
            }
            Some(_) => Fetched::Wrong,
        }
    }

    fn sends(&self, number: usize) -> bool {
        self.nodes[number].alive && !self.nodes[number].is_frozen(self.tick)
    }

    /// Of the flows between zones the first few go on.
    fn queue(&self, flows: &mut [Flow]) {
        for zone in [true, false] {
            let crosses = |flow: &&mut Flow| flow.crosses && (self.nodes[flow.from].zone > 0) == zone;
            let mut crossing: Vec<&mut Flow> = flows.iter_mut().filter(crosses).collect();
            crossing.sort_by_key(|flow| flow.since);
            crossing.into_iter().skip(CROSSING).for_each(|flow| flow.open = false);
        }
    }

    /// Bytes of each upload in this tick: links are filled in rounds, as TCP's flows end up sharing them.
    fn rates(&mut self) -> Vec<f64> {
        let link = |share: f64| LINK * self.plan.tick.as_secs_f64() * share;
        let mut flows: Vec<Flow> = Vec::new();
        for (from, node) in self.nodes.iter().enumerate() {
            let open = self.sends(from);
            flows.extend(node.uploads.iter().map(|upload| {
                let crosses = self.nodes[upload.to].zone != node.zone;
                Flow { from, to: upload.to, crosses, open, since: upload.since, rate: 0.0 }
            }));
        }
        if self.plan.unfair {
            self.queue(&mut flows);
        }
        let mut up: Vec<f64> = self.nodes.iter().map(|node| link(node.link())).collect();
        let mut down: Vec<f64> =
            up.iter().zip(self.origin_rates()).map(|(link, origin)| (link - origin).max(0.0)).collect();
        // Each way between the zones.
        let mut cross = [link(self.plan.zone_link); 2];
        for _ in 0..ROUNDS {
            let (mut senders, mut receivers) = (vec![0.0; up.len()], vec![0.0; up.len()]);
            let mut crossing = [0.0; 2];
            for flow in &mut flows {
                let way = usize::from(self.nodes[flow.from].zone > 0);
                flow.open &= up[flow.from] > 1.0 && down[flow.to] > 1.0;
                flow.open &= !flow.crosses || cross[way] > 1.0;
                if flow.open {
                    senders[flow.from] += 1.0;
                    receivers[flow.to] += 1.0;
                    crossing[way] += f64::from(u8::from(flow.crosses));
                }
            }
            let (up_now, down_now, cross_now) = (up.clone(), down.clone(), cross);
            for flow in flows.iter_mut().filter(|flow| flow.open) {
                let way = usize::from(self.nodes[flow.from].zone > 0);
                let mut more =
                    (up_now[flow.from] / senders[flow.from]).min(down_now[flow.to] / receivers[flow.to]);
                if flow.crosses {
                    more = more.min(cross_now[way] / crossing[way]);
                    cross[way] -= more;
                    self.cross_bytes += more;
                }
                flow.rate += more;
                up[flow.from] -= more;
                down[flow.to] -= more;
            }
        }
        flows.into_iter().map(|flow| flow.rate).collect()
    }
}
