//! The other members of the swarm, as this pull has come to know them.

use std::time::{Duration, Instant};

use super::{Action, Exchange, Fetched};
use crate::{
    mesh::{Member, Role},
    piece::PieceSet,
    swarm::message::{Handle, Name, Report},
};

/// Wrong pieces after which a peer is out, and failures in a row after which it counts as silent.
const STRIKES_MAX: u32 = 3;
/// Failures in a row after which it is not waited for, where what it holds is with nobody else and not at the origin: a
/// node that is short of CPU, or shares a slow link, has been silent for ten seconds by then.
const PATIENCE: u32 = 2 * STRIKES_MAX;
/// A peer without a free slot is asked again after this: a third of what a piece takes at 100 Mbit/s.
const BUSY_PAUSE: Duration = Duration::from_millis(30);
/// The pause after a failed request; it doubles.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// A peer that sends nothing is not asked for more until it does, or this has passed.
const SLOW_PAUSE: Duration = Duration::from_secs(2);
/// A peer that only failed gets another chance after this.
const OUT_FOR: Duration = Duration::from_secs(10);

pub(super) struct Peer {
    pub(super) member: Member,
    /// In another zone: asked only for what is to be brought into ours.
    pub(super) is_far: bool,
    /// The tracker's number, while the member is in its swarm.
    pub(super) handle: Option<Handle>,
    pub(super) has: PieceSet,
    pub(super) whole: bool,
    pub(super) requests: u32,
    /// Not to be asked before this.
    pub(super) pause_until: Option<Instant>,
    pub(super) wrong: u32,
    pub(super) failures: u32,
    /// When it last gave a piece.
    pub(super) good_at: Option<Instant>,
}

impl Peer {
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        let paused = self.pause_until.is_some_and(|until| now < until);
        self.handle.is_some() && self.wrong < STRIKES_MAX && !paused
    }

    /// Whether it gives.
    pub(super) fn is_hopeful(&self) -> bool {
        self.handle.is_some() && self.wrong < STRIKES_MAX && self.failures < STRIKES_MAX
    }

    /// Whether it is worth waiting for when there is nobody else.
    pub(super) fn is_last_hope(&self) -> bool {
        self.handle.is_some() && self.wrong < STRIKES_MAX && self.failures < PATIENCE
    }

    /// One failure more, a pause, and what the tracker is to hear of it. Of requests that fail together one counts.
    fn fails(&mut self, now: Instant, pause: impl FnOnce(u32) -> Duration) -> Option<Action> {
        if self.pause_until.is_some_and(|until| now < until) {
            return None;
        }
        self.failures += 1;
        self.pause_until = Some(now + pause(self.failures));
        let is_silent = self.wrong < STRIKES_MAX && self.failures.is_multiple_of(STRIKES_MAX);
        let handle = self.handle.filter(|_| is_silent)?;
        Some(Action::Tell(Report::Silent { handle }))
    }

    /// It was said to be whole and has nothing: containerd dropped the blob, or room was made. That is no lie.
    fn has_lost_all(&mut self, holders: &mut [u32]) -> Option<Action> {
        let handle = self.handle?;
        self.left(holders);
        self.handle = Some(handle);
        Some(Action::Tell(Report::Silent { handle }))
    }

    /// It is out, and what the tracker is to hear of it.
    fn strike(&mut self, strikes: u32) -> Option<Action> {
        let was_out = self.wrong >= STRIKES_MAX;
        self.wrong += strikes;
        let handle = self.handle.filter(|_| !was_out && self.wrong >= STRIKES_MAX)?;
        Some(Action::Tell(Report::Refused { handle }))
    }

    pub(super) fn holds(&self, index: u32) -> bool {
        self.whole || self.has.contains(index)
    }

    /// It is in no tracker's list any more; what is known of its manners stays.
    pub(super) fn left(&mut self, holders: &mut [u32]) {
        for index in self.has.iter().filter(|_| !self.is_far) {
            holders[index as usize] -= 1;
        }
        self.has = PieceSet::empty(self.has.count());
        self.whole = false;
        self.handle = None;
    }

    pub(super) fn loses(&mut self, index: u32, holders: &mut [u32]) {
        if self.has.remove(index) && !self.is_far {
            holders[index as usize] -= 1;
        }
    }
}

impl Exchange {
    pub(super) fn peer_joined(&mut self, handle: Handle, member: Member) {
        if member.name == self.setting.me.name {
            return;
        }
        self.handles.insert(handle, member.name.clone());
        let count = self.layout.count();
        let me = &self.setting.me;
        // A leech asks everybody: what it has is not in its zone.
        let asks_everybody = me.role == Role::Leech || self.discredited;
        let is_far = me.zone.is_some() && me.zone != member.zone && !asks_everybody;
        let peer = self.peers.entry(member.name.clone()).or_insert_with(|| Peer {
            member: member.clone(),
            is_far,
            handle: None,
            has: PieceSet::empty(count),
            whole: false,
            requests: 0,
            pause_until: None,
            wrong: 0,
            failures: 0,
            good_at: None,
        });
        peer.left(&mut self.holders);
        peer.is_far = is_far;
        // A new generation is a new start, but for wrong bytes.
        if peer.member.generation != member.generation {
            peer.failures = 0;
        }
        peer.member = member;
        peer.handle = Some(handle);
    }

    /// No tracker counts on what this node has: it is like a leech.
    pub(super) fn ask_everybody(&mut self) {
        self.discredited = true;
        for peer in self.peers.values_mut() {
            if std::mem::take(&mut peer.is_far) {
                peer.has.iter().for_each(|index| self.holders[index as usize] += 1);
            }
        }
    }

    pub(super) fn peer_gone(&mut self, handle: Handle) {
        let Some(name) = self.handles.remove(&handle) else { return };
        // It may have come back under another number already.
        if let Some(peer) = self.peers.get_mut(&name).filter(|peer| peer.handle == Some(handle)) {
            peer.left(&mut self.holders);
        }
    }

    pub(super) fn peer_has(&mut self, handle: Handle, pieces: &[u32]) {
        let Some(peer) = self.handles.get(&handle).and_then(|name| self.peers.get_mut(name)) else { return };
        for &index in pieces {
            if peer.has.insert(index) && !peer.is_far {
                self.holders[index as usize] += 1;
            }
        }
    }

    pub(super) fn peer_whole(&mut self, handle: Handle) {
        let Some(peer) = self.handles.get(&handle).and_then(|name| self.peers.get_mut(name)) else { return };
        peer.left(&mut self.holders);
        peer.handle = Some(handle);
        peer.whole = true;
    }

    pub(super) fn peer_lost(&mut self, handle: Handle, index: u32) {
        let Some(peer) = self.handles.get(&handle).and_then(|name| self.peers.get_mut(name)) else { return };
        if std::mem::take(&mut peer.whole) {
            let all: Vec<u32> = (0..self.layout.count()).collect();
            self.peer_has(handle, &all);
        }
        let peer = self.peers.get_mut(&self.handles[&handle]).expect("just looked up");
        peer.loses(index, &mut self.holders);
    }

    pub(super) fn is_far(&self, name: &str) -> bool {
        self.peers.get(name).is_some_and(|peer| peer.is_far)
    }

    /// Bytes came from this peer.
    pub(super) fn heard_from(&mut self, name: &str, now: Instant) {
        if self.is_far(name) {
            self.far_heard_at = Some(now);
        }
    }

    /// Whether the link between zones is busy: a request that waits on it behind others says nothing of its peer, and
    /// asked of another one it would load the link twice.
    pub(super) fn others_cross(&self, now: Instant) -> bool {
        self.far_heard_at.is_some_and(|at| now.duration_since(at) < SLOW_PAUSE)
    }

    /// Takes down what an answer says of the peer.
    pub(super) fn peer_answered(&mut self, name: &str, index: u32, outcome: Fetched, now: Instant) {
        if let Fetched::Good(_) = outcome {
            self.heard_from(name, now);
        }
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.requests = peer.requests.saturating_sub(1);
        let told = match outcome {
            Fetched::Good(_) => {
                peer.good_at = Some(now);
                peer.failures = 0;
                peer.pause_until = None;
                None
            }
            Fetched::Busy => {
                // A longer pause stands.
                peer.pause_until = peer.pause_until.max(Some(now + BUSY_PAUSE));
                None
            }
            Fetched::Wrong => peer.strike(1),
            Fetched::Absent if peer.whole => peer.has_lost_all(&mut self.holders),
            // It has taken it back, or never had it.
            Fetched::Absent => {
                peer.loses(index, &mut self.holders);
                peer.fails(now, |_| Duration::ZERO)
            }
            Fetched::Failed => peer.fails(now, |failures| match failures {
                STRIKES_MAX.. => OUT_FOR,
                few => FAILURE_PAUSE * 2_u32.pow(few),
            }),
        };
        self.actions.extend(told);
    }

    /// Half a second without a byte is a failure like others: what only this peer has must come from
    /// elsewhere before its requests time out.
    pub(super) fn peer_is_slow(&mut self, name: &str, now: Instant) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        // Requests that wait behind others on a full link say nothing.
        if peer.good_at.is_none_or(|at| now.duration_since(at) >= SLOW_PAUSE) {
            self.actions.extend(peer.fails(now, |_| SLOW_PAUSE));
        }
    }

    /// The peer is out of this swarm for good.
    pub(super) fn strike_out(&mut self, name: &Name) {
        if let Some(peer) = self.peers.get_mut(name) {
            self.actions.extend(peer.strike(STRIKES_MAX));
        }
    }
}
