//! Finding who read wrong bytes from the origin when no chain closes and nobody has proven the blob.
//!
//! One member at a time reads pieces again and compares. Its verdict makes everybody forget what the voucher
//! stated; to be named and banned takes evidence of one's own, which only the auditor has. Each member audits
//! once, so a lying auditor costs one round.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Puller, Swarm};
use crate::swarm::message::{Event, Handle, Name, Verdict};

/// An auditor reports every piece that it has read; without a word for so long another one is asked.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Auditors that must find everything as stated before the next depth, and in the end the origin itself is
/// blamed: one could be the liar.
const CLEAN_MAX: u32 = 2;
/// Pieces of each voucher in a first audit: whoever reads wrong bytes seldom does it once. It costs a few
/// pieces, even if the liar is asked to audit.
const SHALLOW: u32 = 2;

#[derive(Default)]
pub(super) struct Audit {
    running: Option<(Handle, Instant)>,
    done: BTreeSet<Name>,
    clean: u32,
    /// The first audits found nothing: everything is read.
    deep: bool,
}

impl Audit {
    /// Nobody is left to find more at this depth; `false` if this was all.
    fn deepen(&mut self) -> bool {
        self.done.clear();
        self.clean = 0;
        !std::mem::replace(&mut self.deep, true)
    }

    pub(super) fn left(&mut self, handle: Handle) {
        self.running.take_if(|(auditor, _)| *auditor == handle);
    }

    pub(super) fn progress(&mut self, handle: Handle, now: Instant) {
        if let Some((auditor, at)) = &mut self.running
            && *auditor == handle
        {
            *at = now;
        }
    }

    /// The auditor could not read the origin; whether it was the auditor.
    pub(super) fn returned(&mut self, handle: Handle, members: &BTreeMap<Handle, Puller>) -> bool {
        let ended = self.running.take_if(|(auditor, _)| *auditor == handle).is_some();
        if ended && let Some(puller) = members.get(&handle) {
            self.done.insert(puller.member.name.clone());
        }
        ended
    }
}

impl Swarm {
    /// Somebody's chain does not close and nobody here has one that does.
    pub(super) fn seek_auditor(&mut self, now: Instant) {
        if let Some((auditor, at)) = self.audit.running {
            if now.duration_since(at) <= STALL_MAX {
                return;
            }
            self.audit.returned(auditor, &self.members);
        }
        let wanted = self.members.values().any(|puller| puller.unclosed);
        let proven = self.members.values().any(|puller| puller.whole);
        if !wanted || proven {
            return;
        }
        let candidate = self
            .members
            .iter()
            .filter(|(handle, p)| self.may_read(**handle) && !self.audit.done.contains(&p.member.name))
            .min_by_key(|(handle, puller)| (!puller.unclosed, puller.read, **handle))
            .map(|(&handle, _)| handle);
        match candidate {
            Some(handle) => {
                self.audit.running = Some((handle, now));
                let each = if self.audit.deep { u32::MAX } else { SHALLOW };
                self.tell(handle, Event::Audit { each });
            }
            None if self.audit.deepen() => self.seek_auditor(now),
            None => self.blame_origin(now),
        }
    }

    pub(super) fn verdict(&mut self, handle: Handle, verdict: Verdict) {
        if !self.audit.returned(handle, &self.members) {
            return;
        }
        match verdict {
            Verdict::Clean => self.audit.clean += 1,
            Verdict::Differs { index, statement } => {
                let stated = self.pieces[index as usize].stated.clone();
                let Some((_, voucher)) = stated.filter(|(known, _)| *known != statement) else { return };
                tracing::warn!(%voucher, piece = index, "swarm: an audit found other bytes at the origin");
                if let Some(voucher) = self.handle_of(&voucher) {
                    self.discredit(voucher);
                }
                self.discredited.insert(voucher.clone());
                self.drop_vouched(&voucher);
            }
        }
        if self.audit.clean >= CLEAN_MAX && !self.audit.deepen() {
            let now = self.unfinished_at;
            self.blame_origin(now);
        }
    }

    fn blame_origin(&mut self, now: Instant) {
        self.origin.fail("wrong_digest", now);
        for handle in self.members.keys().copied().collect::<Vec<_>>() {
            if std::mem::take(&mut self.puller(handle).unclosed) {
                self.tell(handle, Event::OriginFailed { reason: "wrong_digest".to_owned() });
            }
        }
    }
}
