//! Frames from others, and what foca makes of them.

use std::time::{Duration, Instant};

use foca::{OwnedNotification, State, Timer};

use super::{Action, Change, Due, Frame, FrameError, Gone, LEFT, Life, MEMBERS_MAX, Swim, UNKNOWN, pace};

/// What a frame's sender is to us.
enum Standing {
    /// Known, or a later life of one that is.
    Known,
    /// To be asked at its own address first.
    Unproven,
}

impl Swim {
    /// A frame from a caller, or in the answer of a member, whose certificate names `certified`.
    pub(in crate::mesh) fn frame(
        &mut self,
        certified: &str,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), FrameError> {
        if self.has_left {
            return Ok(());
        }
        let Frame { head, head_len, updates } = Frame::decode(bytes)?;
        let from = head.src;
        if from.name() != certified || from.name() == self.me().name() {
            let (claimed, certified) = (from.name().to_owned(), certified.to_owned());
            return Err(FrameError::Name { claimed, certified });
        }
        match self.standing(&from) {
            Standing::Known => {}
            Standing::Unproven => {
                if self.checks.len() + self.foca.num_members() < MEMBERS_MAX {
                    self.checks.add(from, now);
                }
                return Ok(());
            }
        }
        // It is alive, although it could not be dialed from here.
        if self.checks.reason(&from).is_some() {
            self.checks.add(from.clone(), now);
        }
        let handled = self.foca.handle_data(&bytes[..head_len], &mut self.outbox);
        self.settle(handled, now);
        if self.is_active(&from) {
            if updates.iter().any(|update| *update.id() == from && update.state() == State::Down) {
                self.losses.insert(from.key(), LEFT.to_owned());
            }
            self.hear_updates(updates, true, now);
        }
        Ok(())
    }

    fn standing(&self, from: &Life) -> Standing {
        let known = self.known(from.key()).map(foca::Member::id).filter(|known| known.name() == from.name());
        let Some(known) = known else { return Standing::Unproven };
        let same_daemon = known.member().generation == from.member().generation
            && known.member().address == from.member().address;
        // An earlier life hears from foca that it is over.
        match same_daemon || !from.is_newer_than(known) {
            true => Standing::Known,
            false => Standing::Unproven,
        }
    }

    /// What others say of others, as far as it may be believed.
    pub(super) fn hear_updates(&mut self, updates: Vec<foca::Member<Life>>, broadcast: bool, now: Instant) {
        let mut believed = Vec::with_capacity(updates.len());
        for update in updates {
            if self.may_believe(&update, believed.len(), now) {
                believed.push(update);
            }
        }
        self.apply(believed, broadcast, now);
    }

    fn may_believe(&mut self, update: &foca::Member<Life>, coming: usize, now: Instant) -> bool {
        let (life, me) = (update.id(), self.me().clone());
        if life.name() == me.name() {
            if life.is_newer_than(&me) {
                self.hear_of_namesake(life, (update.state(), &me), now);
            }
            return *life == me;
        }
        if life.key() == me.key() || life.member().is_unspecified() {
            return false;
        }
        match self.known(life.key()) {
            Some(known) => known.id().name() == life.name(),
            None => self.foca.iter_membership_state().len() + coming < MEMBERS_MAX || self.makes_room(),
        }
    }

    /// Somebody knows a later life of this node than this one: an earlier daemon of it, by whose clock it was
    /// later, or another node of the same name.
    fn hear_of_namesake(&mut self, life: &Life, (state, me): (State, &Life), now: Instant) {
        if life.member().address == me.member().address {
            self.outdo(life.member().generation, now);
        } else if state == State::Down {
            self.bereft_of(life, now);
        } else {
            self.renewal.lives(life);
            let (stays, ignored) = (life.member().address.clone(), me.member().address.clone());
            self.conflict(me.name(), stays, ignored);
        }
    }

    pub(super) fn apply(
        &mut self,
        updates: impl IntoIterator<Item = foca::Member<Life>>,
        broadcast: bool,
        now: Instant,
    ) {
        let applied = self.foca.apply_many(updates.into_iter(), broadcast, &mut self.outbox);
        self.settle(applied, now);
    }

    /// Does what foca wants done, and tells what it has found.
    pub(super) fn settle(&mut self, outcome: Result<(), foca::Error>, now: Instant) {
        if let Err(error) = outcome {
            tracing::debug!("foca: {error}");
        }
        for (after, timer) in std::mem::take(&mut self.outbox.timers) {
            let stretch = match timer {
                Timer::ProbeRandomMember(_) => pace::stretch(self.foca.num_members()),
                Timer::SendIndirectProbe { .. }
                | Timer::ChangeSuspectToDown { .. }
                | Timer::PeriodicAnnounce(_)
                | Timer::PeriodicAnnounceDown(_)
                | Timer::PeriodicGossip(_)
                | Timer::RemoveDown(_) => Duration::ZERO,
            };
            self.agenda.add(now + after + stretch, Due::Foca(timer));
        }
        for (to, frame) in std::mem::take(&mut self.outbox.frames) {
            // The third one in a frame comes without an address.
            let to = match to.is_reference() {
                true => self.known(to.key()).map(|known| known.id().clone()).filter(|known| *known == to),
                false => Some(to),
            };
            self.actions.extend(to.map(|to| Action::Send { to, frame }));
        }
        for news in std::mem::take(&mut self.outbox.news) {
            self.hear(news, now);
        }
        self.keep_pace();
    }

    fn hear(&mut self, news: OwnedNotification<Life>, now: Instant) {
        match news {
            OwnedNotification::MemberUp(life) => {
                self.gone.remove(&life.key());
                self.losses.remove(&life.key());
                self.changes.push(Change::Joined(life.member().clone()));
            }
            OwnedNotification::MemberDown(life) => self.mourn(&life, now),
            OwnedNotification::Rename(old, new) => {
                self.gone.remove(&old.key());
                let (old, new) = (old.member(), new.member());
                if old.generation != new.generation || old.address != new.address {
                    self.changes.push(Change::Replaced { old: old.clone(), new: new.clone() });
                }
            }
            OwnedNotification::Defunct => self.plan_renewal(now),
            OwnedNotification::Active | OwnedNotification::Idle | OwnedNotification::Rejoin(_) => {}
        }
    }

    fn mourn(&mut self, life: &Life, now: Instant) {
        let told = self.checks.reason(life).map(str::to_owned);
        if told.is_some() {
            self.checks.remove(life.name());
        }
        let is_news = told.is_none();
        let reason = told.or_else(|| self.losses.remove(&life.key())).unwrap_or_else(|| UNKNOWN.to_owned());
        let (member, has_left) = (life.member().clone(), reason == LEFT);
        self.gone.insert(life.key(), Gone { since: now, reason: reason.clone(), has_left });
        if has_left {
            self.changes.push(Change::Left(member));
        } else if is_news {
            self.changes.push(Change::Unreachable { member, reason });
        }
    }

    /// Gives foca the settings for as many members as there are.
    fn keep_pace(&mut self) {
        let members = self.foca.num_members() + 1;
        if members != self.paced_for {
            self.paced_for = members;
            if let Err(error) = self.foca.set_config(pace::config(members)) {
                tracing::debug!("foca: {error}");
            }
        }
    }
}
