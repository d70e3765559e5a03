//! Finding who read wrong bytes from the origin when no chain closes and nobody has proven the blob.
//!
//! ```text
//!   unclosed ──▶ audit: one member reads pieces again ──▶ clean: the next member, deeper, the origin itself
//!                          │ a piece differs
//!                          ▼
//!                recheck: a third member reads that one piece ──▶ agrees with the auditor: the voucher is out
//!                                                                 agrees with the voucher: the auditor is out
//! ```
//! A registry that lies to one member makes that member find everybody else's pieces wrong, in good faith: hence
//! the third. Where there is none, the auditor's word counts. The verdict makes everybody forget what the loser
//! stated; to be named and banned takes evidence of one's own, which the exchange gathers. Each member audits
//! once, so a lying auditor costs one round.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Puller, Swarm};
use crate::{
    piece::Statement,
    swarm::message::{Event, Handle, Name, Verdict},
};

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
    accusation: Option<Accusation>,
    done: BTreeSet<Name>,
    clean: u32,
    /// The first audits found nothing: everything is read.
    deep: bool,
}

/// An auditor's word against a voucher's, until a third has read the piece.
struct Accusation {
    auditor: Name,
    voucher: Name,
    index: u32,
    /// What the auditor says that the origin has.
    found: Statement,
    /// Who could not say.
    asked: BTreeSet<Name>,
}

impl Accusation {
    fn concerns(&self, name: &Name) -> bool {
        self.auditor == *name || self.voucher == *name || self.asked.contains(name)
    }
}

impl Audit {
    /// Nobody is left to find more at this depth; `false` if this was all.
    fn deepen(&mut self) -> bool {
        self.done.clear();
        self.clean = 0;
        !std::mem::replace(&mut self.deep, true)
    }

    /// Nothing that it says counts any more.
    pub(super) fn accuser_is_out(&mut self, name: &Name) {
        self.accusation.take_if(|accusation| accusation.auditor == *name);
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

    /// The auditor is through, or could not read the origin; whether it was the auditor.
    pub(super) fn returned(&mut self, handle: Handle, members: &BTreeMap<Handle, Puller>) -> bool {
        let ended = self.running.take_if(|(auditor, _)| *auditor == handle).is_some();
        if ended && let Some(puller) = members.get(&handle) {
            let name = puller.member.name.clone();
            match &mut self.accusation {
                Some(accusation) => accusation.asked.insert(name),
                None => self.done.insert(name),
            };
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
        if self.audit.accusation.is_some() {
            return self.seek_third(now);
        }
        let wanted = self.members.values().any(|puller| puller.unclosed && !puller.discredited);
        let proven = self.members.values().any(|puller| puller.whole && !puller.is_leech());
        if !wanted || proven {
            return;
        }
        let each = if self.audit.deep { u32::MAX } else { SHALLOW };
        match self.auditor_but(|name| self.audit.done.contains(name)) {
            Some(handle) => self.send_to_audit(handle, Event::Audit { each }, now),
            None if self.audit.deepen() => self.seek_auditor(now),
            None => self.blame_origin(now),
        }
    }

    fn seek_third(&mut self, now: Instant) {
        let Some(accusation) = &self.audit.accusation else { return };
        match self.auditor_but(|name| accusation.concerns(name)) {
            Some(third) => self.send_to_audit(third, Event::Recheck { index: accusation.index }, now),
            None => {
                let convicted = accusation.voucher.clone();
                self.convict(&convicted);
            }
        }
    }

    /// Who is to read again: somebody who waits for it, and has read least by itself.
    fn auditor_but(&self, out: impl Fn(&Name) -> bool) -> Option<Handle> {
        self.members
            .iter()
            .filter(|(handle, puller)| {
                self.may_read(**handle) && !puller.discredited && !out(&puller.member.name)
            })
            .min_by_key(|(handle, puller)| (!puller.unclosed, puller.read, **handle))
            .map(|(&handle, _)| handle)
    }

    fn send_to_audit(&mut self, handle: Handle, order: Event, now: Instant) {
        self.audit.running = Some((handle, now));
        self.tell(handle, order);
    }

    pub(super) fn verdict(&mut self, handle: Handle, verdict: Verdict) {
        let Some(name) = self.members.get(&handle).map(|puller| puller.member.name.clone()) else { return };
        if !self.audit.returned(handle, &self.members) {
            return;
        }
        if let Some(accusation) = &self.audit.accusation {
            let loser = match verdict {
                Verdict::Clean => accusation.auditor.clone(),
                Verdict::Differs { index, statement }
                    if (index, statement) == (accusation.index, accusation.found) =>
                {
                    accusation.voucher.clone()
                }
                // A third version: somebody else is asked.
                Verdict::Differs { .. } => return,
            };
            return self.convict(&loser);
        }
        match verdict {
            Verdict::Clean => self.audit.clean += 1,
            Verdict::Differs { index, statement } => {
                let stated = self.pieces[index as usize].stated.clone();
                let Some((_, voucher)) = stated.filter(|(known, _)| *known != statement) else { return };
                tracing::info!(auditor = %name, %voucher, piece = index, "swarm: an audit found other bytes at the origin");
                let asked = BTreeSet::new();
                self.audit.accusation =
                    Some(Accusation { auditor: name, voucher, index, found: statement, asked });
            }
        }
        if self.audit.clean >= CLEAN_MAX && !self.audit.deepen() {
            let now = self.unfinished_at;
            self.blame_origin(now);
        }
    }

    /// What `name` vouched for is not what the origin has for the others.
    fn convict(&mut self, name: &Name) {
        self.audit.accusation = None;
        tracing::warn!(member = %name, "swarm: the origin has other bytes for the others than for this member");
        self.drop_vouched(name);
        self.distrust(name);
        self.convicted.insert(name.clone());
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
