//! Which piece next, and from whom: what the in-order reader needs soon, then the rarest; ties by chance, so
//! that a crowd does not ask one holder for one piece.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Action, ChainState, Check, Exchange, Request, peers::Peer};
use crate::swarm::message::Name;

/// Requests under way at one peer: one that transfers and one that is about to.
const REQUESTS_EACH: u32 = 2;
/// Requests under way in one pull. Fewer finish sooner, and a piece that is here can be passed on: in the
/// simulation of 8 nodes the makespan is 1.15 x F/B with 6 and 1.46 with 16. Large pieces: as many as fit
/// into these bytes, since the buffers are real memory.
const REQUESTS_MAX: u64 = 6;
const REQUESTS_MIN: u64 = 4;
const BYTES_MAX: u64 = 16 << 20;
/// Pieces ahead of the in-order reader that come first; one request at a time, the rest goes by rarity.
const SOON: u32 = 8;
/// A request is a straggler when it takes so many times what pieces take here, and at least this long.
const STRAGGLER_TIMES: u32 = 3;
const STRAGGLER_MIN: Duration = Duration::from_millis(300);
/// Requests for one piece at a time.
const DUPLICATES_MAX: usize = 2;

impl Exchange {
    /// Sends out as many requests as make sense now.
    pub(super) fn request(&mut self, now: Instant) {
        let room = (BYTES_MAX / self.layout.piece_len()).clamp(REQUESTS_MIN, REQUESTS_MAX);
        // A request that does not move takes no link.
        let moving = |requests: &Vec<Request>| requests.iter().filter(|request| !request.slow).count();
        while self.requests.values().map(moving).sum::<usize>() < usize::try_from(room).expect("small") {
            let usable: Vec<Name> = self
                .peers
                .iter()
                .filter(|(_, peer)| peer.is_usable(now) && peer.requests < REQUESTS_EACH)
                .map(|(name, _)| name.clone())
                .collect();
            if usable.is_empty() {
                return;
            }
            let Some(index) = self.next_piece(&usable).or_else(|| self.straggler(&usable, now)) else {
                return;
            };
            let Some((check, peer)) = self.check_for(index).zip(self.best_peer(&usable, index)) else {
                return;
            };
            self.send(index, check, peer, now);
        }
    }

    fn send(&mut self, index: u32, check: Check, name: Name, now: Instant) {
        let peer = self.peers.get_mut(&name).expect("chosen from the map");
        peer.requests += 1;
        self.actions.push(Action::Fetch { peer: peer.member.clone(), index, check });
        self.requests.entry(index).or_default().push(Request { peer: name, at: now, slow: false });
    }

    fn next_piece(&mut self, usable: &[Name]) -> Option<u32> {
        let soon = self.front..self.layout.count().min(self.front + SOON);
        if !soon.clone().any(|index| self.requests.contains_key(&index)) {
            let first = soon.into_iter().find(|&index| self.is_wanted(index, usable));
            if first.is_some() {
                return first;
            }
        }
        // Reservoir sampling among the rarest.
        let (mut best, mut ties) = (None, 0_u32);
        for index in 0..self.layout.count() {
            let rarity = self.holders[index as usize];
            if best.is_some_and(|(least, _)| rarity > least) || !self.is_wanted(index, usable) {
                continue;
            }
            ties = if best.is_some_and(|(least, _)| rarity == least) { ties + 1 } else { 1 };
            if ties == 1 || self.random.random_range(0..ties) == 0 {
                best = Some((rarity, index));
            }
        }
        best.map(|(_, index)| index)
    }

    fn is_wanted(&self, index: u32, usable: &[Name]) -> bool {
        !self.have.contains(index)
            && !self.requests.contains_key(&index)
            && !self.leases.iter().any(|run| run.contains(&index))
            && self.check_for(index).is_some()
            && usable.iter().any(|name| self.may_give(name, index))
    }

    /// A piece whose request does not move, or takes far longer than pieces take here.
    fn straggler(&self, usable: &[Name], now: Instant) -> Option<u32> {
        let limit = (self.piece_time * STRAGGLER_TIMES).max(STRAGGLER_MIN);
        let late = |request: &Request| request.slow || now.duration_since(request.at) > limit;
        let other = |requests: &[Request], index| {
            usable.iter().any(|name| {
                self.may_give(name, index) && requests.iter().all(|request| request.peer != *name)
            })
        };
        self.requests
            .iter()
            .filter(|(index, _)| !self.have.contains(**index))
            .find(|(index, requests)| {
                requests.len() < DUPLICATES_MAX && requests.iter().all(late) && other(requests, **index)
            })
            .map(|(&index, _)| index)
    }

    pub(super) fn check_for(&self, index: u32) -> Option<Check> {
        match &self.chain {
            ChainState::Known { .. } => Some(Check::Chain),
            ChainState::Unknown | ChainState::Asked => {
                self.stated[index as usize].as_ref().map(|claim| Check::Statement(claim.statement))
            }
        }
    }

    /// A piece that did not fit the chain is asked of nobody but its sponsor.
    fn may_give(&self, name: &Name, index: u32) -> bool {
        let sponsor = match &self.chain {
            ChainState::Known { sponsor } => sponsor.as_ref(),
            ChainState::Unknown | ChainState::Asked => None,
        };
        let only = sponsor.filter(|_| self.ask_sponsor.contains(&index));
        self.peers[name].holds(index) && only.is_none_or(|only| only == name)
    }

    fn best_peer(&mut self, usable: &[Name], index: u32) -> Option<Name> {
        let asked = self.requests.get(&index);
        let new = |name: &&Name| asked.is_none_or(|all| all.iter().all(|request| request.peer != **name));
        let able: Vec<&Name> = usable.iter().filter(|name| self.may_give(name, index)).filter(new).collect();
        let load = |peer: &Peer| (peer.wrong, peer.failures, peer.requests);
        let least = able.iter().map(|name| load(&self.peers[*name])).min()?;
        let ties: Vec<&Name> = able.into_iter().filter(|name| load(&self.peers[*name]) == least).collect();
        Some(ties[self.random.random_range(0..ties.len())].clone())
    }

    pub(super) fn is_with_somebody(&self, index: u32, now: Instant) -> bool {
        let given = |(name, peer): (&Name, &Peer)| {
            peer.holds(index) && (peer.is_hopeful() || peer.is_usable(now)) && self.may_give(name, index)
        };
        self.peers.iter().any(given)
    }
}
