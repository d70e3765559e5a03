//! What has to go, and for whom: pure decisions over a list of what there is.

use std::time::{Duration, SystemTime};

use crate::oci::Digest;

/// Something that the store holds and may let go.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) digest: Digest,
    pub(super) kind: Kind,
    /// Bytes that come free when it goes; nothing while containerd links the file.
    pub(super) frees: u64,
    /// When it was last used; `turn` orders what happened in one tick of the clock.
    pub(super) used: SystemTime,
    pub(super) turn: u64,
    /// Somebody has it open: to remove it would free nothing until he is done.
    pub(super) in_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Blob,
    /// A file that began to arrive and that nobody is waiting for.
    Partial,
}

/// Why something left the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Not used for `expire_after`.
    Expired,
    /// Bytes that containerd does not link went over `quota`.
    Quota,
    /// The file system had less than `keep_free` left.
    KeepFree,
}

/// How the store stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) now: SystemTime,
    /// Bytes that count against the quota.
    pub(super) charged: u64,
    pub(super) quota: u64,
    /// Bytes free on the file system.
    pub(super) free: u64,
    pub(super) keep_free: u64,
    pub(super) expire_after: Duration,
}

/// What a sweep removes, in this order.
pub(super) fn sweep(mut candidates: Vec<Candidate>, standing: Standing) -> Vec<(Candidate, Why)> {
    let Standing { now, quota, keep_free, expire_after, .. } = standing;
    let Standing { mut charged, mut free, .. } = standing;
    oldest_first(&mut candidates);
    let mut going = Vec::new();
    for candidate in candidates.into_iter().filter(|candidate| !candidate.in_use) {
        // A clock that was set back makes nothing old.
        let idle = now.duration_since(candidate.used).unwrap_or_default();
        let is_containerds = candidate.kind == Kind::Blob && candidate.frees == 0;
        // Letting go of what containerd has frees nothing, and it would be read again to be offered.
        let why = if idle > expire_after && !is_containerds {
            Why::Expired
        } else if candidate.frees == 0 {
            continue;
        } else if charged > quota {
            Why::Quota
        } else if free < keep_free {
            Why::KeepFree
        } else {
            continue;
        };
        charged = charged.saturating_sub(candidate.frees);
        free = free.saturating_add(candidate.frees);
        going.push((candidate, why));
    }
    going
}

/// What goes so that `shortage` bytes come free; `Err` with what could come free if that is not enough. Nothing
/// goes in vain.
pub(super) fn make_room(mut candidates: Vec<Candidate>, shortage: u64) -> Result<Vec<Candidate>, u64> {
    oldest_first(&mut candidates);
    let mut freed = 0u64;
    let mut going = Vec::new();
    for candidate in candidates.into_iter().filter(|candidate| !candidate.in_use && candidate.frees > 0) {
        if freed >= shortage {
            break;
        }
        freed = freed.saturating_add(candidate.frees);
        going.push(candidate);
    }
    if freed >= shortage { Ok(going) } else { Err(freed) }
}

fn oldest_first(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|candidate| (candidate.used, candidate.turn));
}
