//! Which piece next, and from whom.
//!
//! A peer with nothing to do for us is worth more than a rare piece: the peer that is asked for least comes
//! first, so that everybody's uplink is used, and among what it holds the rarest piece, so that what is new
//! spreads. A few requests at a time go to what the in-order reader needs soon. Ties are broken by chance, so
//! that a crowd does not ask one holder for one piece.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt, rngs::SmallRng};

use super::{Action, ChainState, Check, Exchange, Request, peers::Peer};
use crate::{piece::PieceSet, swarm::message::Name};

/// Requests under way in one pull, spread over its peers: each more uses more uplinks and makes each piece later. As
/// many as there are peers, between these two, for all pulls of the node together. Simulated makespans over F/B with 10, 16, 24 and 32 requests: of 8 nodes
/// with 50 ms of queue on every link 1.19, 1.15, 1.15 and 1.16; of 100 nodes 1.7, 1.40, 1.31 and 1.23.
const REQUESTS_FEW: u32 = 16;
const REQUESTS_MANY: u32 = 32;
/// Large pieces: as many as fit into [`BYTES_MAX`], since the buffers are real memory.
const REQUESTS_MIN: u32 = 4;
const BYTES_MAX: u64 = 16 << 20;
/// The next request is at a peer before the last one's bytes are through: on links with 50 ms of queue the makespan of 8
/// nodes is 1.23 x F/B with two and 1.35 with one.
const EACH_MIN: u32 = 2;
/// Pieces ahead of the in-order reader that come first, a few requests at a time; the rest goes by rarity. When nine
/// tenths of a blob that all others hold are here, the reader could have read 0.12, 0.21, 0.30 and 0.43 of it with 1, 2,
/// 4 and 8 requests; a cold crowd of 8 takes what there is as it comes, and its reader has 0.88 with any of them, but one
/// of 100 is done after 1.28, 1.28, 1.30 and 1.31 x F/B (simulated).
const SOON: u32 = 8;
const SOON_REQUESTS: usize = 2;
/// A request is a straggler when it takes so many times what pieces take here, and at least this long.
const STRAGGLER_TIMES: u32 = 3;
const STRAGGLER_MIN: Duration = Duration::from_millis(300);
/// Where the tracker's news comes so late, a member that is full knows better who has a piece: simulated with a thousand
/// nodes the makespan is 2.3 x F/B instead of 2.7; with a hundred, where it comes after 13 ms, 1.33 instead of 1.28.
const LATE_NEWS: Duration = Duration::from_millis(50);
/// Requests for one piece at a time.
const DUPLICATES_MAX: usize = 2;

impl Exchange {
    /// Sends out as many requests as make sense now.
    pub(super) fn request(&mut self, now: Instant) {
        let room = self.requests_max();
        // A request that does not move takes no link.
        let moving =
            |requests: &Vec<Request>| requests.iter().filter(|request| !self.stands(request, now)).count();
        let under_way: usize = self.requests.values().map(moving).sum();
        for _ in under_way..room as usize {
            // The generator is a few words; apart from the rest it can be drawn from while the rest is read.
            let mut random = self.random.clone();
            let chosen = self.choose(&mut random, now);
            self.random = random;
            let Some((index, peer)) = chosen else { return };
            let Some(check) = self.check_for(index) else { return };
            self.send(index, check, peer, now);
        }
    }

    fn requests_max(&self) -> u32 {
        let fit = u32::try_from(BYTES_MAX / self.layout.piece_len()).unwrap_or(u32::MAX);
        let peers = u32::try_from(self.handles.len()).unwrap_or(u32::MAX);
        let share = peers.clamp(REQUESTS_FEW, REQUESTS_MANY) / self.pulls;
        fit.min(share).max(REQUESTS_MIN)
    }

    fn send(&mut self, index: u32, check: Check, name: Name, now: Instant) {
        let peer = self.peers.get_mut(&name).expect("chosen from the map");
        peer.requests += 1;
        self.actions.push(Action::Fetch { peer: peer.member.clone(), index, check });
        let referred = self.referrals.take(index, &name) && !self.peers[&name].holds(index);
        self.requests.entry(index).or_default().push(Request { peer: name, at: now, slow: false, referred });
        self.note(index);
    }

    fn choose(&self, random: &mut SmallRng, now: Instant) -> Option<(u32, Name)> {
        let mut usable: Vec<&Peer> = self.peers.values().filter(|peer| peer.is_usable(now)).collect();
        // A single peer is asked for many pieces at once: its link is not to stand idle between two answers.
        let each_min = if self.pulls == 1 { EACH_MIN } else { 1 };
        let each_max = (self.requests_max() / u32::try_from(usable.len().max(1)).expect("few")).max(each_min);
        usable.retain(|peer| peer.requests < each_max);
        shuffle(&mut usable, random);
        usable.sort_by_key(|peer| merit(peer));
        let fresh = if self.pace >= LATE_NEWS { self.by_referral(&usable) } else { None };
        let chosen = self.of_sponsor(&usable).or(fresh).or_else(|| self.soon(&usable)).or_else(|| {
            usable.chunk_by(|a, b| merit(a) == merit(b)).find_map(|group| self.rarest(group, random))
        });
        // What somebody has just been fed is rare no more: it comes after what is.
        let chosen = chosen.or_else(|| self.by_referral(&usable));
        chosen.or_else(|| self.straggler(&usable, now)).map(|(index, peer)| (index, peer.member.name.clone()))
    }

    /// A piece that only the chain's sponsor can make true.
    fn of_sponsor<'a>(&self, usable: &[&'a Peer]) -> Option<(u32, &'a Peer)> {
        let mut asked = self.ask_sponsor.iter().filter(|index| self.wanted.contains(**index));
        asked.find_map(|&index| Some((index, *usable.iter().find(|peer| self.may_ask(peer, index))?)))
    }

    /// The first piece that the in-order reader will miss, unless enough of those are on their way.
    fn soon<'a>(&self, usable: &[&'a Peer]) -> Option<(u32, &'a Peer)> {
        let mut soon = self.front..self.layout.count().min(self.front + SOON);
        let coming = soon.clone().filter(|index| self.requests.contains_key(index)).count();
        if coming >= SOON_REQUESTS {
            return None;
        }
        soon.find_map(|index| {
            let is_wanted = self.wanted.contains(index) && self.check_for(index).is_some();
            let peer = usable.iter().find(|peer| is_wanted && self.may_ask(peer, index))?;
            Some((index, *peer))
        })
    }

    /// The rarest piece that one of these peers can give.
    fn rarest<'a>(&self, peers: &[&'a Peer], random: &mut SmallRng) -> Option<(u32, &'a Peer)> {
        let (mut best, mut ties) = (None::<(u32, u32, &Peer)>, 0_u32);
        for peer in peers {
            let near = if peer.whole { &self.wanted } else { &peer.has };
            let sought = if peer.is_far { &[&self.imports, &self.forsaken][..] } else { &[near] };
            for index in sought.iter().flat_map(|sought| self.wanted.common(sought)) {
                let rarity = self.holders[index as usize];
                if best.is_some_and(|(least, ..)| rarity > least)
                    || self.check_for(index).is_none()
                    || !self.may_ask(peer, index)
                {
                    continue;
                }
                ties = if best.is_some_and(|(least, ..)| rarity == least) { ties + 1 } else { 1 };
                // Reservoir sampling among the rarest.
                if random.random_range(0..ties) == 0 {
                    best = Some((rarity, index, peer));
                }
            }
        }
        best.map(|(_, index, peer)| (index, peer))
    }

    /// A piece whose request does not move, or takes far longer than pieces take here.
    fn straggler<'a>(&self, usable: &[&'a Peer], now: Instant) -> Option<(u32, &'a Peer)> {
        let limit = (self.piece_time * STRAGGLER_TIMES).max(STRAGGLER_MIN);
        // What comes from another zone is as late as the link between them makes it; twice would be twice its load.
        // Somebody near may be asked for it all the same.
        let late = |request: &Request| {
            request.slow || (!self.is_far(&request.peer) && now.duration_since(request.at) > limit)
        };
        let stand = |requests: &[Request]| requests.iter().all(|request| self.stands(request, now));
        self.requests
            .iter()
            .filter(|(index, requests)| {
                !self.have.contains(**index) && requests.len() < DUPLICATES_MAX && requests.iter().all(late)
            })
            .find_map(|(&index, requests)| {
                let other = |peer: &&&Peer| {
                    self.may_ask(peer, index)
                        && (!peer.is_far || stand(requests))
                        && requests.iter().all(|request| request.peer != peer.member.name)
                };
                usable.iter().find(other).map(|peer| (index, *peer))
            })
    }

    /// No byte of it came for a while, and not because of others on the link between zones.
    fn stands(&self, request: &Request, now: Instant) -> bool {
        request.slow && !(self.is_far(&request.peer) && self.others_cross(now))
    }

    pub(super) fn check_for(&self, index: u32) -> Option<Check> {
        match &self.chain {
            ChainState::Known { .. } => Some(Check::Chain),
            ChainState::Unknown | ChainState::Asked => {
                self.stated[index as usize].as_ref().map(|claim| Check::Statement(claim.statement))
            }
        }
    }

    /// Members of other zones are asked for what is to be brought into ours, and a sponsor for its own pieces.
    fn may_ask(&self, peer: &Peer, index: u32) -> bool {
        let is_sought = !peer.is_far
            || self.imports.contains(index)
            || self.forsaken.contains(index)
            || self.ask_sponsor.contains(&index);
        is_sought && self.may_give(peer, index)
    }

    pub(super) fn asks_sponsor_for(&self, index: u32) -> bool {
        self.ask_sponsor.contains(&index)
    }

    /// What the zone holds and does not give, beside what we import: the tracker leases no import of it.
    pub(super) fn find_forsaken(&self) -> PieceSet {
        let mut forsaken = PieceSet::empty(self.layout.count());
        let near = |peer: &&Peer| !peer.is_far && peer.handle.is_some();
        let (giving, refusing): (Vec<&Peer>, Vec<&Peer>) =
            self.peers.values().filter(near).partition(|peer| peer.is_hopeful());
        if !refusing.is_empty() && giving.len() + refusing.len() < self.handles.len() {
            let is_forsaken = |index: &u32| {
                refusing.iter().any(|peer| peer.holds(*index))
                    && !giving.iter().any(|peer| peer.holds(*index))
            };
            for index in self.wanted.iter().filter(is_forsaken) {
                if !self.imports.contains(index) {
                    forsaken.insert(index);
                }
            }
        }
        forsaken
    }

    /// A piece that did not fit the chain is asked of nobody but its sponsor.
    fn may_give(&self, peer: &Peer, index: u32) -> bool {
        let sponsor = match &self.chain {
            ChainState::Known { sponsor } => sponsor.as_ref(),
            ChainState::Unknown | ChainState::Asked => None,
        };
        let only = sponsor.filter(|_| self.ask_sponsor.contains(&index));
        peer.holds(index) && only.is_none_or(|only| *only == peer.member.name)
    }

    pub(super) fn is_with_somebody(&self, index: u32, now: Instant) -> bool {
        let given = |peer: &Peer| {
            peer.holds(index) && (peer.is_last_hope() || peer.is_usable(now)) && self.may_give(peer, index)
        };
        self.peers.values().any(given)
    }
}

/// How gladly a peer is asked; the least first.
fn merit(peer: &Peer) -> (u32, u32, u32) {
    (peer.wrong, peer.failures, peer.requests)
}

fn shuffle<T>(items: &mut [T], random: &mut impl Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.random_range(0..=last));
    }
}
