//! Which refs are held, for whom, and until when. Pure: events and the time go in, decisions come out.
//!
//! ```text
//!            ask                 opened
//!  (none) ────────► Opening ───────────────► Holding
//!    ▲                │ forget                 │ last key gone, blob committed, limit, lost
//!    │                ▼                        ▼
//!    ├───────────── (none)                   Ending
//!    │   ended otherwise                       │
//!    ├─────────────────────────────────────────┤
//!    │   YIELD_MAX later                       │ ended at a limit
//!    └──────────── Yielded ◄───────────────────┘
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::{End, Limits};
use crate::oci::Digest;

/// Most refs at a time, those that were yielded included: eight pulls of 128 layers. Each costs a stream and a task;
/// beyond, containerd fetches by itself.
const REFS_MAX: usize = 1024;

/// How long a ref that was held up to a limit is left to containerd: as long as a pull goes on after its client
/// left. A later Prepare of the same pull must not take it back.
const YIELD_MAX: Duration = Duration::from_secs(60);

/// A ref in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RefKey {
    pub(super) namespace: String,
    pub(super) r#ref: String,
}

/// What to do for somebody who wants a ref held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nobody holds it: open it.
    Open,
    /// It is being opened or given up: ask again once something has changed.
    Wait,
    /// It is held, now for this key as well.
    Holding,
    /// It may not be held, for this reason.
    Refused(&'static str),
}

#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    refs: HashMap<RefKey, Entry>,
    /// When the last piece of each blob with a ref above was proven.
    pieces: HashMap<Digest, Instant>,
}

#[derive(Debug)]
struct Entry {
    digest: Digest,
    /// Extract keys of the Prepares that want it.
    keys: BTreeSet<String>,
    /// Pulls whose key was settled, and that have not come with the next one yet.
    between: usize,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// `over`: what came in the meantime, and ends the hold as soon as there is one.
    Opening {
        over: Option<End>,
    },
    Holding {
        since: Instant,
    },
    Ending,
    Yielded {
        end: End,
        until: Instant,
    },
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, refs: HashMap::new(), pieces: HashMap::new() }
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The Prepare of `extract_key` wants the ref held.
    pub(super) fn ask(
        &mut self,
        ref_key: &RefKey,
        digest: &Digest,
        extract_key: &str,
        now: Instant,
    ) -> Asked {
        self.refs.retain(|_, entry| !entry.is_past(now));
        if let Some(entry) = self.refs.get_mut(ref_key) {
            return entry.ask(extract_key);
        }
        if self.refs.len() >= REFS_MAX {
            return Asked::Refused("too_many_holds");
        }
        let entry = Entry {
            digest: digest.clone(),
            keys: BTreeSet::from([extract_key.to_owned()]),
            between: 0,
            phase: Phase::Opening { over: None },
        };
        self.refs.insert(ref_key.clone(), entry);
        self.pieces.entry(digest.clone()).or_insert(now);
        Asked::Open
    }

    /// The ref is open. If nobody wants it any more it must be ended, for the reason returned.
    pub(super) fn opened(&mut self, ref_key: &RefKey, now: Instant) -> Option<End> {
        let entry = self.refs.get_mut(ref_key)?;
        let Phase::Opening { over } = entry.phase else { return None };
        entry.phase = over.map_or(Phase::Holding { since: now }, |_| Phase::Ending);
        over
    }

    /// The ref could not be opened, or need not be.
    pub(super) fn forget(&mut self, ref_key: &RefKey) {
        let Some(entry) = self.refs.remove(ref_key) else { return };
        self.forget_pieces(&entry.digest);
    }

    /// A key was removed or its Prepare cancelled; the holds that it was the last to want are to be ended.
    pub(super) fn key_gone(&mut self, extract_key: &str, end: End) -> Vec<RefKey> {
        self.end_where(end, |_, entry| entry.keys.remove(extract_key) && !entry.is_wanted())
    }

    /// A key did its work; its pull comes back with another.
    pub(super) fn key_settled(&mut self, extract_key: &str) {
        for entry in self.refs.values_mut() {
            if entry.keys.remove(extract_key) {
                entry.between += 1;
            }
        }
    }

    /// A blob is there, or its pull has failed; its holds in that namespace are to be ended.
    pub(super) fn blob_settled(&mut self, namespace: &str, digest: &Digest, end: End) -> Vec<RefKey> {
        self.end_where(end, |ref_key, entry| ref_key.namespace == namespace && entry.digest == *digest)
    }

    /// A piece of the blob was proven.
    pub(super) fn progress(&mut self, digest: &Digest, now: Instant) {
        if let Some(last) = self.pieces.get_mut(digest) {
            *last = now;
        }
    }

    /// When to ask whether the hold has [`Self::expired`]; `None` if it is being ended already.
    pub(super) fn deadline(&self, ref_key: &RefKey) -> Option<Instant> {
        let (idle, total) = self.limits_of(ref_key)?;
        Some(total.map_or(idle, |total| total.min(idle)))
    }

    /// Ends the hold if it may not go on, and says why.
    pub(super) fn expired(&mut self, ref_key: &RefKey, now: Instant) -> Option<End> {
        let (idle, total) = self.limits_of(ref_key)?;
        let end = match total {
            Some(total) if total <= now => End::TotalMax,
            _ if idle <= now => End::IdleMax,
            _ => return None,
        };
        self.ending(ref_key);
        Some(end)
    }

    /// The ref is about to be given up.
    pub(super) fn ending(&mut self, ref_key: &RefKey) {
        if let Some(entry) = self.refs.get_mut(ref_key) {
            entry.phase = Phase::Ending;
        }
    }

    /// The ref is free.
    pub(super) fn ended(&mut self, ref_key: &RefKey, end: End, now: Instant) {
        match end {
            End::PullFailed | End::IdleMax | End::TotalMax => {
                let Some(entry) = self.refs.get_mut(ref_key) else { return };
                entry.phase = Phase::Yielded { end, until: now + YIELD_MAX };
                let digest = entry.digest.clone();
                self.forget_pieces(&digest);
            }
            End::BlobCommitted | End::KeyRemoved | End::PrepareCancelled | End::Lost | End::Shutdown => {
                self.forget(ref_key);
            }
        }
    }

    /// Marks the holds that `over` picks, and returns those that are open.
    fn end_where(&mut self, end: End, mut over: impl FnMut(&RefKey, &mut Entry) -> bool) -> Vec<RefKey> {
        let mut open = Vec::new();
        for (ref_key, entry) in &mut self.refs {
            if !over(ref_key, entry) {
                continue;
            }
            match entry.phase {
                Phase::Opening { .. } => entry.phase = Phase::Opening { over: Some(end) },
                Phase::Holding { .. } => {
                    entry.phase = Phase::Ending;
                    open.push(ref_key.clone());
                }
                Phase::Ending | Phase::Yielded { .. } => {}
            }
        }
        open
    }

    /// When the hold has idled too long, and when it has lasted too long.
    fn limits_of(&self, ref_key: &RefKey) -> Option<(Instant, Option<Instant>)> {
        let entry = self.refs.get(ref_key)?;
        let Phase::Holding { since } = entry.phase else { return None };
        let last_piece = self.pieces.get(&entry.digest).map_or(since, |&last| last.max(since));
        Some((last_piece + self.limits.idle_max, self.limits.total_max.map(|max| since + max)))
    }

    fn forget_pieces(&mut self, digest: &Digest) {
        let live = |entry: &Entry| entry.digest == *digest && !matches!(entry.phase, Phase::Yielded { .. });
        if !self.refs.values().any(live) {
            self.pieces.remove(digest);
        }
    }
}

impl Entry {
    fn ask(&mut self, extract_key: &str) -> Asked {
        match self.phase {
            Phase::Ending => return Asked::Wait,
            Phase::Yielded { end, .. } => return Asked::Refused(end.reason()),
            Phase::Opening { .. } | Phase::Holding { .. } => {}
        }
        if self.keys.insert(extract_key.to_owned()) {
            // This is the next key of a pull whose last one was settled, if there is such a pull.
            self.between = self.between.saturating_sub(1);
        }
        match self.phase {
            Phase::Holding { .. } => Asked::Holding,
            Phase::Opening { over: Some(End::KeyRemoved | End::PrepareCancelled) } => {
                self.phase = Phase::Opening { over: None };
                Asked::Wait
            }
            Phase::Opening { .. } | Phase::Ending | Phase::Yielded { .. } => Asked::Wait,
        }
    }

    fn is_wanted(&self) -> bool {
        !self.keys.is_empty() || self.between > 0
    }

    fn is_past(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Yielded { until, .. } if until <= now)
    }
}

#[cfg(test)]
mod tests;
