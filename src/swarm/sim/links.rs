//! Bytes on the simulated links: uploads between nodes, reads from the origin.

use super::*;

impl Sim {
    pub(super) fn upload(&mut self) {
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
    pub(super) fn rates(&self) -> Vec<f64> {
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

    pub(super) fn sends(&self, number: usize) -> bool {
        self.nodes[number].alive && !matches!(self.nodes[number].fault, Fault::Stalls(at) if self.tick >= at)
    }

    /// Connections over which the origin sends something to this node.
    pub(super) fn reads_of(&self, number: usize) -> usize {
        let node = &self.nodes[number];
        if self.sends(number) { node.reads.len() + usize::from(node.audit.is_some()) } else { 0 }
    }

    pub(super) fn origin_rate(&self, number: usize) -> f64 {
        let all: usize = (0..self.nodes.len()).map(|number| self.reads_of(number)).sum();
        self.origin_link * self.reads_of(number) as f64 / all.max(1) as f64
    }

    pub(super) fn read_origin(&mut self) {
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

    pub(super) fn audit(&mut self, number: usize, share: f64) {
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
    pub(super) fn finish(&mut self, number: usize) {
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
