//! What each event changes.

use std::time::Instant;

use foca::State;

use super::{Action, Change, Due, Event, Life, MEMBERS_MAX, Refusal, Swim, Target, pace};

impl Swim {
    pub(in crate::mesh) fn apply_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Answered { target, life } => self.answered(&target, life, now),
            Event::Failed { target: Target::Contact(contact), reason, .. } => {
                if self.contacts.failed(&contact, &reason, now) {
                    self.changes.push(Change::Silent { contact, reason });
                }
            }
            Event::Failed { target: Target::Member(life), reason, is_final } => {
                self.unanswered(&life, reason, is_final, now);
            }
            Event::Unsent { to, reason, is_final } => match is_final && self.is_active(&to) {
                true => self.refused(&to, reason, now),
                false => self.lost(&to, reason),
            },
            Event::Seen { who } => self.seen(&who),
            Event::Missed { who, reason, is_final } => match is_final && self.is_active(&who) {
                true => self.refused(&who, reason, now),
                false => {
                    self.lost(&who, reason);
                    self.missed(who, now);
                }
            },
            Event::Doubted { name } => {
                let life = self.active().find(|life| life.name() == name).cloned();
                life.into_iter().for_each(|life| self.checks.add(life, now));
            }
            Event::Resolved { seed, contacts } => self.contacts.resolved(&seed, contacts, now),
        }
    }

    /// Somebody greeted us and is proven to have the name that it gives.
    pub(in crate::mesh) fn called(&mut self, life: Life, now: Instant) -> Result<(), Refusal> {
        let taken = |by: &Life| {
            let (name, stays) = (by.name().to_owned(), by.member().address.clone());
            Err(Refusal::NameTaken { name, stays })
        };
        let me = self.me();
        if life.name() == me.name() {
            return if life.member().generation == me.member().generation { Ok(()) } else { taken(me) };
        }
        let Some(known) = self.known(life.key()) else { return self.check_new(life, now) };
        let (state, known) = (known.state(), known.id().clone());
        if known.name() != life.name() {
            return Err(Refusal::Full);
        }
        let unheard = state == State::Down || self.checks.reason(&known).is_some();
        if life.is_newer_than(&known) || known == life && unheard {
            self.checks.add(life, now);
            return Ok(());
        }
        // Started earlier, yet calling: either two daemons share the name, or a clock ran backwards over a
        // restart. The address that we know decides which.
        let same_place = known.member().address == life.member().address;
        if known == life || known.member().generation == life.member().generation || same_place || unheard {
            return Ok(());
        }
        taken(&known)
    }

    fn check_new(&mut self, life: Life, now: Instant) -> Result<(), Refusal> {
        if self.checks.len() + self.foca.num_members() >= MEMBERS_MAX {
            self.full();
            return Err(Refusal::Full);
        }
        self.checks.add(life, now);
        Ok(())
    }

    fn answered(&mut self, target: &Target, life: Life, now: Instant) {
        let me = self.me().clone();
        match target {
            Target::Contact(contact) if life.name() == me.name() => {
                self.contacts.answered(contact, None, now);
                if life.member().generation != me.member().generation {
                    self.conflict(me.name(), me.member().address.clone(), contact.address.clone());
                }
            }
            Target::Contact(contact) => {
                self.contacts.answered(contact, Some(life.name()), now);
                if contact.address == life.member().address {
                    self.checks.remove(life.name());
                    self.proven(life, now);
                } else if !self.is_active(&life) || self.checks.reason(&life).is_some() {
                    self.checks.add(life, now);
                }
            }
            // It says that it is elsewhere: believed when it answers there.
            Target::Member(asked) if asked.member().address != life.member().address => {
                self.checks.add(life, now);
            }
            Target::Member(asked) => {
                let was_unreachable = self.checks.remove(asked.name()).is_some();
                if was_unreachable && self.is_active(&life) {
                    self.changes.push(Change::Joined(life.member().clone()));
                }
                self.proven(life, now);
            }
        }
    }

    /// This life has answered at its own address, by the name of its certificate.
    fn proven(&mut self, life: Life, now: Instant) {
        self.losses.remove(&life.key());
        let news = match self.known(life.key()) {
            None => self.makes_room(),
            Some(known) if *known.id() == life => {
                if known.state() == State::Down {
                    // It hears from us that it is down, or we hear it from it: then it comes back.
                    let announced = self.foca.announce(life, &mut self.outbox);
                    self.settle(announced, now);
                }
                return;
            }
            // Whose clock ran backwards hears of its former life when views are compared, and outdoes it.
            Some(known) => known.id().name() == life.name() && life.is_newer_than(known.id()),
        };
        let again = self.known(life.key()).is_some_and(|known| known.id().name() == life.name());
        if news {
            self.apply([foca::Member::alive(life.clone())], true, now);
        }
        if news || again {
            self.actions.push(Action::Compare { with: life });
        }
    }

    fn unanswered(&mut self, life: &Life, reason: String, is_final: bool, now: Instant) {
        let state = self.known(life.key()).filter(|known| known.id() == life).map(foca::Member::state);
        match state {
            Some(State::Alive | State::Suspect) if is_final => self.refused(life, reason, now),
            Some(State::Alive | State::Suspect) if self.checks.reason(life).is_none() => {
                // Slow is not gone: the probes decide.
                self.checks.remove(life.name());
                self.lost(life, reason);
            }
            Some(State::Down) => {
                self.checks.remove(life.name());
            }
            Some(State::Alive | State::Suspect) | None => {
                if self.checks.failed(life, &reason, now) {
                    self.changes.push(Change::Unreachable { member: life.member().clone(), reason });
                }
            }
        }
    }

    /// A member that nobody can dial from here, although it is alive for all that others know: left out at
    /// once on this node, and suspected by all, until it refutes that or its time is up.
    fn refused(&mut self, life: &Life, reason: String, now: Instant) {
        let is_first = self.checks.reason(life).is_none();
        self.checks.add(life.clone(), now);
        if self.checks.failed(life, &reason, now) {
            self.changes.push(Change::Unreachable { member: life.member().clone(), reason });
        }
        let known = self.known(life.key()).filter(|known| known.id() == life);
        if let (true, Some(incarnation)) = (is_first, known.map(foca::Member::incarnation)) {
            self.suspect(life.clone(), incarnation, now);
        }
    }

    pub(super) fn suspect(&mut self, life: Life, incarnation: u16, now: Instant) {
        self.apply([foca::Member::new(life.clone(), incarnation, State::Suspect)], true, now);
        let time = pace::suspicion(self.foca.num_members());
        self.agenda.add(now + time, Due::Confirm { life, incarnation });
    }

    fn lost(&mut self, life: &Life, reason: String) {
        if self.losses.len() >= MEMBERS_MAX {
            self.losses.clear();
        }
        self.losses.insert(life.key(), reason);
    }

    /// Whether one more fits, if need be in the place of one who is down.
    pub(super) fn makes_room(&mut self) -> bool {
        if self.foca.iter_membership_state().len() < MEMBERS_MAX {
            return true;
        }
        let down = self.known_by(|known| known.state() == State::Down).map(|known| known.id().clone());
        let room = down.is_some();
        match down {
            Some(life) => self.remove(life),
            None => self.full(),
        }
        room
    }
}
