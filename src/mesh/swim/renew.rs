//! The next life of this node: after its death was told in error, when it is reached elsewhere, or when a clock
//! ran backwards over a restart.

use std::time::{Duration, Instant};

use super::{Due, Life, Swim};
use crate::mesh::Member;

/// After a minute without one a new life begins at once; within it, after a second and ever later. Two nodes of
/// one name would else bury each other as fast as frames travel.
const RENEWAL_QUIET: Duration = Duration::from_secs(60);
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A namesake elsewhere that is said to be gone has so long to be heard of again: whoever moves, or is suspected in error,
/// goes on as a next life at once.
const MOURNING: Duration = Duration::from_secs(5);

/// When this node begins its next life.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    is_due: bool,
    last: Option<Instant>,
    pause: Duration,
    /// The generation of a life of this node that somebody knows, and that the next one is to outdo.
    outdo: u64,
    /// The latest life of a namesake elsewhere that is said to be gone, and until when it may be heard of again.
    bereft: Option<(Life, Instant)>,
}

impl Renewal {
    /// A namesake elsewhere lives.
    pub(super) fn lives(&mut self, life: &Life) {
        self.bereft = self.bereft.take().filter(|(gone, _)| !life.is_newer_than(gone));
    }
}

impl Swim {
    pub(super) fn renew(&mut self, now: Instant) {
        if !std::mem::take(&mut self.renewal.is_due) {
            return;
        }
        self.renewal.last = Some(now);
        let me = self.me();
        let next = match me.member().generation > self.renewal.outdo {
            true => me.next(),
            false => {
                let generation = self.renewal.outdo.saturating_add(1);
                Life::new(Member { generation, ..me.member().clone() }, 0)
            }
        };
        self.become_life(next, now);
    }

    pub(super) fn become_life(&mut self, life: Life, now: Instant) {
        let changed = self.foca.change_identity(life, &mut self.outbox);
        // foca probes nobody under a new identity before it has applied something.
        let applied =
            changed.and_then(|()| self.foca.apply_many(std::iter::empty(), false, &mut self.outbox));
        self.settle(applied, now);
    }

    /// Somebody knows a life of this node that is over, or is no life of this node, and of a later generation than this
    /// one: until it is outdone this node is dead to them, however often it begins anew.
    pub(super) fn outdo(&mut self, generation: u64, now: Instant) {
        if generation > self.renewal.outdo && !self.has_left {
            self.renewal.outdo = generation;
            self.renewal.is_due = true;
            self.agenda.add(now, Due::Renew);
        }
        self.plan_renewal(now);
    }

    /// The later life of a namesake elsewhere is over. If no other is heard of, the name is this node's again; others
    /// believe it only of a life that is later still.
    pub(super) fn bereft_of(&mut self, life: &Life, now: Instant) {
        if self.renewal.bereft.as_ref().is_none_or(|(gone, _)| life.is_newer_than(gone)) {
            self.renewal.bereft = Some((life.clone(), now + MOURNING));
            self.agenda.add(now + MOURNING, Due::Inherit);
        }
    }

    pub(super) fn inherit(&mut self, now: Instant) {
        if let Some((gone, _)) = self.renewal.bereft.take_if(|(_, until)| *until <= now) {
            self.outdo(gone.member().generation, now);
        }
    }

    /// A new life is due; not at once if the last one is young.
    pub(super) fn plan_renewal(&mut self, now: Instant) {
        if self.renewal.is_due || self.has_left {
            return;
        }
        let quiet = self.renewal.last.is_none_or(|at| now.duration_since(at) > RENEWAL_QUIET);
        self.renewal.pause = match quiet {
            true => Duration::ZERO,
            false => (self.renewal.pause * 2).clamp(RENEWAL_PAUSE, RENEWAL_PAUSE_MAX),
        };
        self.renewal.is_due = true;
        self.agenda.add(now + self.renewal.pause, Due::Renew);
    }
}
