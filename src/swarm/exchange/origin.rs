//! What this pull reads from the origin, and what becomes of it when nobody can.

use std::time::{Duration, Instant};

use super::{Action, ChainState, Claim, Exchange};
use crate::{
    mesh::Role,
    piece::Statement,
    swarm::message::{Failure, Report, Run},
};

/// A pull whose origin failed waits so long for a next piece from members that say that they have some.
const HOPE_MAX: Duration = Duration::from_secs(30);
/// And for others to take what it has itself, as long as one of them got something within this: its pieces leave the swarm
/// with it.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

/// What others lack of what this pull has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lacking {
    pieces: usize,
    since: Instant,
}

impl Exchange {
    /// A piece from the origin is stored.
    pub fn read(&mut self, index: u32, statement: Statement, now: Instant) {
        let voucher = self.setting.me.name.clone();
        self.keep(index, Claim { statement, voucher });
        self.settle(now);
    }

    /// A piece from the origin does not fit the chain. The origin is believed rather than a sponsor.
    pub fn read_wrong(&mut self, now: Instant) {
        match &self.chain {
            ChainState::Known { sponsor: None } => self.fail("wrong_digest".to_owned()),
            ChainState::Known { sponsor: Some(_) } => self.drop_chain(),
            ChainState::Unknown | ChainState::Asked => {}
        }
        self.settle(now);
    }

    /// Bytes came from the origin for the lease, audit or not, that contains `index`.
    pub fn reading(&mut self, index: u32) {
        let start = self.leases.iter().find(|run| run.contains(&index)).map_or(index, |run| run.start);
        self.actions.push(Action::Tell(Report::Reading { start }));
    }

    /// The lease that contains `index` is not being read yet: its reader waits for a turn at the registry.
    pub fn awaits_turn(&mut self, index: u32) {
        if let Some(run) = self.leases.iter().find(|run| run.contains(&index)) {
            self.actions.push(Action::Tell(Report::Waiting { start: run.start }));
        }
    }

    /// Reading a lease ended, with the reason if it did before its end.
    pub fn read_ended(&mut self, run: &Run, failure: Option<(Failure, String)>, now: Instant) {
        let known = self.leases.len();
        self.leases.retain(|lease| lease != run);
        run.clone().for_each(|index| self.note(index));
        if let Some((failure, reason)) = failure
            && self.leases.len() < known
        {
            self.actions.push(Action::Tell(Report::Returned { run: run.clone(), failure, reason }));
        }
        self.settle(now);
    }

    /// The origin is beyond reach and what is missing is with nobody.
    pub(super) fn give_up_if_stuck(&mut self, now: Instant) {
        let Some(reason) = self.origin_failed.clone() else { return };
        let since = *self.hopes_since.get_or_insert(now);
        let busy = !self.requests.is_empty() || !self.leases.is_empty() || self.auditing || self.given;
        if busy || self.chain == ChainState::Asked {
            return;
        }
        // What somebody has comes here first: it is there when the pull is taken up again, or another one's.
        let hopes = now.duration_since(since) < HOPE_MAX;
        let coming = || hopes && self.have.missing().any(|index| self.is_with_somebody(index, now));
        if !self.unclosed && (self.have.is_full() || coming()) {
            return;
        }
        if !self.unclosed && hopes && self.is_taken_from(now) {
            return;
        }
        match self.discredited {
            true => self.abandoned = true,
            false => self.fail(reason),
        }
    }

    /// Whether others lack what this pull has, and still get some of it.
    fn is_taken_from(&mut self, now: Instant) -> bool {
        if self.discredited || self.setting.me.role == Role::Leech {
            return false;
        }
        let others = self.peers.values().filter(|peer| peer.handle.is_some());
        let pieces = others.map(|peer| self.have.iter().filter(|&index| !peer.holds(index)).count()).sum();
        let lacking = self.lacking.filter(|lacking| lacking.pieces == pieces);
        let lacking = *self.lacking.insert(lacking.unwrap_or(Lacking { pieces, since: now }));
        pieces > 0 && now.duration_since(lacking.since) < TAKEN_WITHIN
    }
}
