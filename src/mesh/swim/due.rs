//! What is done when its time has come.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use foca::{State, Timer};
use rand::RngExt;

use super::{Action, Change, Due, FORGET_AFTER, Gone, Life, Swim, Target, UNKNOWN};

/// So often one of those who are down is asked whether it is, so that a mesh that was cut in two becomes one.
pub(super) const REVIVE_EVERY: Duration = Duration::from_secs(30);
/// Views are compared as often with somebody, when all is quiet.
const COMPARE_EVERY_MAX: Duration = Duration::from_secs(30);

impl Swim {
    pub(super) fn next_greeting(&mut self, now: Instant) -> Option<Target> {
        if let Some(life) = self.checks.due(now) {
            return Some(Target::Member(life));
        }
        let (foca, checks) = (&self.foca, &self.checks);
        let here = |text: &str| {
            let mut members = foca.iter_members().map(foca::Member::id);
            members.any(|life| {
                (life.name() == text || life.member().address == text) && checks.reason(life).is_none()
            })
        };
        self.contacts.due(now, here).map(Target::Contact)
    }

    pub(super) fn act(&mut self, due: Due, now: Instant) {
        match due {
            Due::Foca(timer) => {
                let handled = self.foca.handle_timer(timer, &mut self.outbox);
                self.settle(handled, now);
            }
            Due::Confirm { life, incarnation } => {
                let suspected = |known: &foca::Member<Life>| {
                    *known.id() == life
                        && known.state() == State::Suspect
                        && known.incarnation() == incarnation
                };
                if self.known(life.key()).is_some_and(suspected) {
                    self.apply([foca::Member::new(life, incarnation, State::Down)], true, now);
                }
            }
            Due::Watch => self.watch(now),
            Due::Renew => self.renew(now),
            Due::Inherit => self.inherit(now),
            Due::Compare => {
                let pause = self.compare_after.mul_f64(self.rng.random_range(0.75..1.25));
                self.compare_after = (self.compare_after * 2).min(COMPARE_EVERY_MAX);
                self.agenda.add(now + pause, Due::Compare);
                let with = self.any(|known| known.state() != State::Down);
                self.actions.extend(with.map(|with| Action::Compare { with }));
            }
            Due::Revive => {
                self.agenda.add(now + REVIVE_EVERY.mul_f64(self.rng.random_range(0.75..1.25)), Due::Revive);
                self.sweep(now);
                let stayed = |key| self.gone.get(&key).is_some_and(|gone: &Gone| !gone.has_left);
                let keys: BTreeSet<u64> = self.gone.keys().copied().filter(|key| stayed(*key)).collect();
                let one = self.any(|known| known.state() == State::Down && keys.contains(&known.id().key()));
                self.actions.extend(one.map(|life| Action::Greet(Target::Member(life))));
            }
        }
    }

    /// Notes since when who is down, and forgets whoever has been for too long.
    fn sweep(&mut self, now: Instant) {
        let is_down = |known: &&foca::Member<Life>| known.state() == State::Down;
        let down: Vec<Life> =
            self.foca.iter_membership_state().filter(is_down).map(|known| known.id().clone()).collect();
        let keys: BTreeSet<u64> = down.iter().map(Life::key).collect();
        self.gone.retain(|key, _| keys.contains(key));
        for life in down {
            let unknown = || Gone { since: now, reason: UNKNOWN.to_owned(), has_left: false };
            let gone = self.gone.entry(life.key()).or_insert_with(unknown);
            if now.duration_since(gone.since) >= FORGET_AFTER {
                self.changes.push(Change::Forgotten(life.member().clone()));
                self.remove(life);
            }
        }
        let forgotten = self.checks.forget(now);
        self.changes.extend(forgotten.iter().map(|life| Change::Forgotten(life.member().clone())));
    }

    pub(super) fn remove(&mut self, down: Life) {
        self.gone.remove(&down.key());
        if let Err(error) = self.foca.handle_timer(Timer::RemoveDown(down), &mut self.outbox) {
            tracing::debug!("foca: {error}");
        }
    }
}
