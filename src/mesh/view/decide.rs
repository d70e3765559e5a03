//! What each event changes.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    Change, Contact, ContactEntry, Entry, GREET_EVERY, Health, Key, MEMBERS_MAX, MISSES_MAX, Met,
    RETRY_EVERY_MAX, Refusal, View,
};
use crate::mesh::Member;

impl View {
    /// Somebody greeted us and is proven to have the name that it gives.
    pub(in crate::mesh) fn called(&mut self, member: Member, now: Instant) -> Result<Vec<Change>, Refusal> {
        if member.name == self.me.name {
            if member.generation == self.me.generation {
                return Ok(Vec::new());
            }
            return Err(Refusal::NameTaken { name: member.name, stays: self.me.address.clone() });
        }
        let Some(entry) = self.members.get(&member.name) else {
            if self.members.len() >= MEMBERS_MAX {
                return Err(Refusal::Full);
            }
            return Ok(self.join(member, now).into_iter().collect());
        };
        if entry.member == member {
            if matches!(entry.health, Health::Unreachable { .. }) {
                self.hurry(&member.name, now);
            }
            return Ok(Vec::new());
        }
        if member.generation >= entry.member.generation {
            return Ok(vec![self.replace(member, now)]);
        }
        // Started earlier, yet calling: either two daemons share the name, or a clock ran backwards over a
        // restart. The address that we know decides which.
        let stays = entry.member.address.clone();
        let alive = matches!(entry.health, Health::Alive { .. });
        self.hurry(&member.name, now);
        if stays == member.address || !alive {
            return Ok(Vec::new());
        }
        Err(Refusal::NameTaken { name: member.name, stays })
    }

    pub(super) fn contact_answered(
        &mut self,
        contact: &Contact,
        member: Member,
        now: Instant,
    ) -> Vec<Change> {
        let myself = member.name == self.me.name && member.generation == self.me.generation;
        let met = if myself { Met::Myself } else { Met::Member(member.name.clone()) };
        let Some(entry) = self.contacts.get_mut(contact) else { return Vec::new() };
        entry.met = met;
        self.schedule(Key::Contact(contact.clone()), now + RETRY_EVERY_MAX);
        if myself {
            return Vec::new();
        }
        if member.name == self.me.name {
            return self.conflict(&member.name, self.me.address.clone(), contact.address.clone());
        }
        match self.members.get(&member.name) {
            None => self.join(member, now).into_iter().collect(),
            Some(known) if known.member == member => {
                self.hurry_unless_alive(&member.name, now);
                Vec::new()
            }
            Some(known) if member.generation >= known.member.generation => vec![self.replace(member, now)],
            Some(known) if matches!(known.health, Health::Alive { .. }) => {
                let stays = known.member.address.clone();
                self.conflict(&member.name, stays, member.address)
            }
            // The newer one is gone and the older one is here.
            Some(_) => vec![self.replace(member, now)],
        }
    }

    /// A member told us of others. Everybody who joins hears of all who are there and greets them, so that
    /// all know all although each was given only one address.
    pub(super) fn heard_of(&mut self, members: Vec<Member>, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for member in members {
            if self.members.contains_key(&member.name) {
                self.hurry_unless_alive(&member.name, now);
            } else if member.name != self.me.name {
                changes.extend(self.join(member, now));
            }
        }
        changes
    }

    pub(super) fn member_answered(&mut self, asked: &Member, member: Member, now: Instant) -> Vec<Change> {
        let Some(entry) = self.members.get_mut(&asked.name).filter(|entry| entry.member == *asked) else {
            return Vec::new();
        };
        let was_alive = matches!(entry.health, Health::Alive { .. });
        entry.health = Health::Alive { misses: 0 };
        let old = std::mem::replace(&mut entry.member, member.clone());
        self.schedule(Key::Member(asked.name.clone()), now + GREET_EVERY);
        if old != member {
            // It says that it is elsewhere now: believed when it answers there.
            if old.address != member.address {
                self.members.get_mut(&asked.name).expect("just seen").health = Health::Joining;
                self.hurry(&asked.name, now);
            }
            return vec![Change::Replaced { old, new: member }];
        }
        if was_alive { Vec::new() } else { vec![Change::Joined(member)] }
    }

    pub(super) fn contact_failed(&mut self, contact: &Contact, reason: String, now: Instant) -> Vec<Change> {
        let Some(entry) = self.contacts.get_mut(contact) else { return Vec::new() };
        let (retry_at, news) = match &mut entry.met {
            Met::Nobody { reason: told, retry_after } => {
                let retry_at = now + *retry_after;
                *retry_after = (*retry_after * 2).min(RETRY_EVERY_MAX);
                (retry_at, told.replace(reason.clone()).as_ref() != Some(&reason))
            }
            // Whose it was is unreachable too, and that has been told.
            Met::Member(_) | Met::Myself => (now + RETRY_EVERY_MAX, false),
        };
        self.schedule(Key::Contact(contact.clone()), retry_at);
        if news { vec![Change::Silent { contact: contact.clone(), reason }] } else { Vec::new() }
    }

    pub(super) fn member_failed(
        &mut self,
        asked: &Member,
        reason: String,
        is_final: bool,
        now: Instant,
    ) -> Vec<Change> {
        let Some(entry) = self.members.get_mut(&asked.name).filter(|entry| entry.member == *asked) else {
            return Vec::new();
        };
        let mut changes = Vec::new();
        let retry_after = match &mut entry.health {
            Health::Alive { misses } if !is_final && *misses + 1 < MISSES_MAX => {
                *misses += 1;
                // The greeting has already waited out its second.
                Duration::ZERO
            }
            Health::Unreachable { reason: told, retry_after, .. } => {
                *retry_after = (*retry_after * 2).min(RETRY_EVERY_MAX);
                let retry_after = *retry_after;
                if *told != reason {
                    told.clone_from(&reason);
                    changes.push(Change::Unreachable { member: asked.clone(), reason });
                }
                retry_after
            }
            Health::Alive { .. } | Health::Joining => {
                entry.health =
                    Health::Unreachable { reason: reason.clone(), since: now, retry_after: GREET_EVERY };
                changes.push(Change::Unreachable { member: asked.clone(), reason });
                GREET_EVERY
            }
        };
        self.schedule(Key::Member(asked.name.clone()), now + retry_after);
        changes
    }

    pub(super) fn resolved(&mut self, seed: &str, contacts: BTreeSet<Contact>, now: Instant) {
        let mut gone = Vec::new();
        for (contact, entry) in &mut self.contacts {
            if !contacts.contains(contact) && entry.seeds.remove(seed) && entry.seeds.is_empty() {
                gone.push(contact.clone());
            }
        }
        for contact in gone {
            self.unschedule(&Key::Contact(contact.clone()));
            self.contacts.remove(&contact);
        }
        for contact in contacts {
            if let Some(entry) = self.contacts.get_mut(&contact) {
                entry.seeds.insert(seed.to_owned());
            } else if self.contacts.len() < MEMBERS_MAX {
                let met = Met::Nobody { reason: None, retry_after: GREET_EVERY };
                let seeds = BTreeSet::from([seed.to_owned()]);
                self.contacts.insert(contact.clone(), ContactEntry { seeds, met, next: None });
                self.schedule(Key::Contact(contact), now);
            }
        }
    }

    /// A member that was not known; greeted at once.
    fn join(&mut self, member: Member, now: Instant) -> Option<Change> {
        if self.members.len() >= MEMBERS_MAX {
            return (!std::mem::replace(&mut self.full_told, true)).then_some(Change::Full);
        }
        let name = member.name.clone();
        self.members.insert(name.clone(), Entry { member, health: Health::Joining, next: None });
        self.schedule(Key::Member(name), now);
        None
    }

    fn replace(&mut self, member: Member, now: Instant) -> Change {
        let name = member.name.clone();
        let entry = self.members.get_mut(&name).expect("only a known member is replaced");
        let old = std::mem::replace(&mut entry.member, member.clone());
        entry.health = Health::Joining;
        self.schedule(Key::Member(name), now);
        Change::Replaced { old, new: member }
    }

    fn conflict(&mut self, name: &str, stays: String, ignored: String) -> Vec<Change> {
        // Told once for each pair; forgotten all at once, so that a churn of names cannot fill memory.
        if self.conflicts.len() >= MEMBERS_MAX {
            self.conflicts.clear();
        }
        if !self.conflicts.insert((name.to_owned(), ignored.clone())) {
            return Vec::new();
        }
        vec![Change::Conflict { name: name.to_owned(), stays, ignored }]
    }
}
