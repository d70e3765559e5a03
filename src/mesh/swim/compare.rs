//! Views made equal: two members compare sums of 64 parts of theirs; for the parts that differ they say whom they
//! have, as fingerprints; and only members that one of them lacks travel.
//!
//! Only who is live counts. Those who are down would come back from whoever forgets them last; they travel only
//! against somebody's belief that they are alive.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use foca::State;

use super::{
    Action, FrameError, Life, MEMBERS_MAX, Swim,
    frame::{update_from_wire, update_to_wire},
    life::key_of,
};
use crate::wire::mesh as wire;

/// Parts of a view: at 10,000 members one that differs is 1.2 KiB of fingerprints.
pub(in crate::mesh) const PARTS: usize = 64;
/// Members in one message, 1.3 MiB if every field is at its limit. Who lacks more compares again.
pub(in crate::mesh) const EXCHANGE_MAX: usize = 2048;
/// Members that are told on as news. More at once come to somebody new, or after a mesh was cut in two: then the
/// others compare, too.
const NEWS_MAX: usize = 64;

/// Why a message does not compare views.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompareError {
    #[error("it compares {0} parts of a view and not {PARTS}")]
    Parts(usize),
    #[error("it tells of more than {MEMBERS_MAX} members")]
    Members,
    #[error("it exchanges more than {EXCHANGE_MAX} members at once")]
    Exchange,
    #[error("it tells of no valid member: {0}")]
    Update(#[from] FrameError),
}

fn part_of(life: &Life) -> usize {
    usize::try_from(life.key() % PARTS as u64).expect("a small number")
}

impl Swim {
    fn shown(&self) -> impl Iterator<Item = &Life> {
        self.active().chain([self.me()])
    }

    /// What this node's view looks like.
    pub(in crate::mesh) fn comparison(&self) -> wire::CompareRequest {
        let mut sums = vec![0u64; PARTS];
        for life in self.shown() {
            let sum = &mut sums[part_of(life)];
            *sum = sum.wrapping_add(life.fingerprint());
        }
        wire::CompareRequest { sums }
    }

    /// Where it differs from the caller's.
    pub(in crate::mesh) fn compare(
        &self,
        request: &wire::CompareRequest,
    ) -> Result<wire::CompareResponse, CompareError> {
        if request.sums.len() != PARTS {
            return Err(CompareError::Parts(request.sums.len()));
        }
        let ours = self.comparison().sums;
        let mut parts: HashMap<usize, Vec<u64>> = (0..PARTS)
            .filter(|&part| ours[part] != request.sums[part])
            .map(|part| (part, Vec::new()))
            .collect();
        for life in self.shown() {
            if let Some(lives) = parts.get_mut(&part_of(life)) {
                lives.push(life.fingerprint());
            }
        }
        let index = |part| u32::try_from(part).expect("a small number");
        let parts = parts.into_iter().map(|(part, lives)| wire::Part { index: index(part), lives }).collect();
        Ok(wire::CompareResponse { parts })
    }

    /// What to ask for and what to tell, after an answer to [`Self::comparison`]; nothing if all is the same.
    pub(in crate::mesh) fn compared(
        &self,
        answer: &wire::CompareResponse,
    ) -> Result<Option<wire::ExchangeRequest>, CompareError> {
        if answer.parts.len() > PARTS {
            return Err(CompareError::Parts(answer.parts.len()));
        }
        let theirs: HashSet<u64> = answer.parts.iter().flat_map(|part| &part.lives).copied().collect();
        // One more than members, which is the other itself.
        if theirs.len() > MEMBERS_MAX + 1 {
            return Err(CompareError::Members);
        }
        let parts: HashSet<usize> =
            answer.parts.iter().filter_map(|part| usize::try_from(part.index).ok()).collect();
        let ours: HashSet<u64> = self.shown().map(Life::fingerprint).collect();
        let known = self.foca.iter_membership_state();
        let down: Vec<&foca::Member<Life>> = known
            .filter(|known| known.state() == State::Down && theirs.contains(&known.id().fingerprint()))
            .collect();
        let lacked = |life: &Life| parts.contains(&part_of(life)) && !theirs.contains(&life.fingerprint());
        let known = self.foca.iter_members().filter(|known| lacked(known.id())).map(update_to_wire);
        let me = lacked(self.me()).then(|| update_to_wire(&foca::Member::alive(self.me().clone())));
        let updates = down.iter().map(|known| update_to_wire(known)).chain(me).chain(known);
        let dead: HashSet<u64> = down.iter().map(|known| known.id().fingerprint()).collect();
        let wanted = theirs.iter().filter(|print| !ours.contains(print) && !dead.contains(print)).copied();
        let request = wire::ExchangeRequest {
            updates: updates.take(EXCHANGE_MAX).collect(),
            wanted: wanted.take(EXCHANGE_MAX).collect(),
        };
        Ok((!request.updates.is_empty() || !request.wanted.is_empty()).then_some(request))
    }

    /// Gives a caller whom it wants, and takes what a member tells.
    pub(in crate::mesh) fn exchange(
        &mut self,
        caller: &str,
        request: wire::ExchangeRequest,
        now: Instant,
    ) -> Result<wire::ExchangeResponse, CompareError> {
        if request.wanted.len() > EXCHANGE_MAX {
            return Err(CompareError::Exchange);
        }
        let told = updates_from_wire(request.updates)?;
        let wanted: HashSet<u64> = request.wanted.into_iter().collect();
        let known = self.foca.iter_members().filter(|known| wanted.contains(&known.id().fingerprint()));
        let mut updates: Vec<wire::Update> = known.map(update_to_wire).collect();
        let me = foca::Member::alive(self.me().clone());
        if wanted.contains(&me.id().fingerprint()) {
            updates.push(update_to_wire(&me));
        }
        let against = told.iter().filter_map(|update| self.contradiction(update));
        updates.extend(against.map(|known| update_to_wire(&known)));
        updates.truncate(EXCHANGE_MAX);
        let by_member = self
            .known(key_of(caller))
            .is_some_and(|known| known.id().name() == caller && known.state() != State::Down);
        if by_member {
            let broadcast = told.len() <= NEWS_MAX;
            self.hear_updates(told, broadcast, now);
        }
        Ok(wire::ExchangeResponse { updates })
    }

    /// What is known here against the belief that somebody is alive.
    fn contradiction(&self, told: &foca::Member<Life>) -> Option<foca::Member<Life>> {
        if told.id().name() == self.me().name() {
            return (told.id() != self.me()).then(|| foca::Member::alive(self.me().clone()));
        }
        let known = self.known(told.id().key())?;
        let is_over = known.id() == told.id() && known.state() == State::Down && told.state() != State::Down;
        (is_over || known.id().is_newer_than(told.id())).then(|| known.clone())
    }

    /// Takes what a member answered.
    pub(in crate::mesh) fn exchanged(
        &mut self,
        with: &Life,
        answer: wire::ExchangeResponse,
        now: Instant,
    ) -> Result<(), CompareError> {
        let updates = updates_from_wire(answer.updates)?;
        let (count, before) = (updates.len(), self.foca.num_members());
        self.hear_updates(updates, count <= NEWS_MAX, now);
        if count >= EXCHANGE_MAX && self.foca.num_members() > before {
            self.actions.push(Action::Compare { with: with.clone() });
        }
        Ok(())
    }
}

fn updates_from_wire(updates: Vec<wire::Update>) -> Result<Vec<foca::Member<Life>>, CompareError> {
    if updates.len() > EXCHANGE_MAX {
        return Err(CompareError::Exchange);
    }
    Ok(updates.into_iter().map(update_from_wire).collect::<Result<_, _>>()?)
}
