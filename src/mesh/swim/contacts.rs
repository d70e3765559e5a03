//! Addresses at which the settings say that members are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::RETRY_EVERY_MAX;

/// Contacts at a time. A DNS name of a large mesh has an address for each member; a few lead to all.
const CONTACTS_MAX: usize = 32;
/// A contact that has not answered is asked again after this, then half as often each time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An address that may belong to a member, and the names its certificate may carry for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::mesh) struct Contact {
    /// `host:port` to dial.
    pub(in crate::mesh) address: String,
    /// A certificate that names any of these is the one we look for.
    pub(in crate::mesh) names: Vec<String>,
}

#[derive(Debug)]
enum Met {
    Nobody { reason: Option<String>, retry_after: Duration },
    Member(String),
    Myself,
}

#[derive(Debug)]
struct Entry {
    seeds: BTreeSet<String>,
    met: Met,
    /// When to ask; `None` while it is being asked.
    next: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Contacts {
    entries: BTreeMap<Contact, Entry>,
    /// Which of many addresses are taken: always the same ones here, others on another node.
    choice: u64,
}

impl Contacts {
    pub(super) fn new(choice: u64) -> Self {
        Self { entries: BTreeMap::new(), choice }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.next).min()
    }

    /// A contact whose time has come and which could tell us something new: `is_settled` says of a name or an
    /// address whether that member is here.
    pub(super) fn due(&mut self, now: Instant, is_settled: impl Fn(&str) -> bool) -> Option<Contact> {
        for (contact, entry) in &mut self.entries {
            if entry.next.is_none_or(|at| at > now) {
                continue;
            }
            let settled = match &entry.met {
                Met::Myself => true,
                Met::Member(name) => is_settled(name),
                Met::Nobody { .. } => is_settled(&contact.address),
            };
            entry.next = settled.then(|| now + RETRY_EVERY_MAX);
            if !settled {
                return Some(contact.clone());
            }
        }
        None
    }

    pub(super) fn answered(&mut self, contact: &Contact, name: Option<&str>, now: Instant) {
        if let Some(entry) = self.entries.get_mut(contact) {
            entry.met = name.map_or(Met::Myself, |name| Met::Member(name.to_owned()));
            entry.next = Some(now + RETRY_EVERY_MAX);
        }
    }

    /// Whether that is news.
    pub(super) fn failed(&mut self, contact: &Contact, reason: &str, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(contact) else { return false };
        match &mut entry.met {
            Met::Nobody { reason: told, retry_after } => {
                entry.next = Some(now + *retry_after);
                *retry_after = (*retry_after * 2).min(RETRY_EVERY_MAX);
                told.replace(reason.to_owned()).as_deref() != Some(reason)
            }
            // Whose it was is gone too, and that has been told.
            Met::Member(_) | Met::Myself => {
                entry.next = Some(now + RETRY_EVERY_MAX);
                false
            }
        }
    }

    /// What a seed stands for now.
    pub(super) fn resolved(&mut self, seed: &str, mut contacts: BTreeSet<Contact>, now: Instant) {
        self.entries.retain(|contact, entry| {
            contacts.contains(contact) || !entry.seeds.remove(seed) || !entry.seeds.is_empty()
        });
        if contacts.len() > CONTACTS_MAX {
            let mut chosen: Vec<Contact> = contacts.into_iter().collect();
            chosen.sort_by_key(|contact| xxh3_64_with_seed(contact.address.as_bytes(), self.choice));
            chosen.truncate(CONTACTS_MAX);
            contacts = chosen.into_iter().collect();
        }
        for contact in contacts {
            if self.entries.contains_key(&contact) || self.entries.len() < CONTACTS_MAX {
                let met = Met::Nobody { reason: None, retry_after: RETRY_AFTER };
                let new = Entry { seeds: BTreeSet::new(), met, next: Some(now) };
                self.entries.entry(contact).or_insert(new).seeds.insert(seed.to_owned());
            }
        }
    }

    /// Those that have not answered yet, and why.
    pub(super) fn silent(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(|(contact, entry)| match &entry.met {
            Met::Nobody { reason: Some(reason), .. } => Some((&*contact.address, &**reason)),
            Met::Nobody { reason: None, .. } | Met::Member(_) | Met::Myself => None,
        })
    }
}
