//! Who is here, as decisions: events in, changes out, time as an argument, no I/O.
//!
//! ```text
//!  contact (a seed's address) ── answers ──▶ Joining ── answers at its own address ──▶ Alive
//!  somebody's Hello ───────────────────────▶    │                                       │  refused, or
//!                                               └── does not ──▶ Unreachable ◀──────────┘  3 misses
//!                                                                    │ └── answers ──▶ Alive
//!                                                                    └── an hour ──▶ forgotten
//! ```
//! What somebody says of itself is only a hint of where to ask: a member is alive once it has answered at
//! the address that it advertises, with a certificate that names it. So every member that one node sees
//! can be dialed by all.
//!
//! One name is one member. A daemon that started later (its generation) takes the place of an earlier one;
//! what answers at the address that we know is believed even if a clock ran backwards between.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Member, MemberState};

/// How often a member that is alive is greeted. With [`MISSES_MAX`] it is noticed within about 3 s that a
/// member has gone silent; one that is dead refuses the connection and is noticed at the next greeting.
const GREET_EVERY: Duration = Duration::from_secs(1);
/// One lost packet is sent again within 200 ms and one garbage collection of a busy node is shorter than
/// a second: three silent seconds in a row are neither.
const MISSES_MAX: u8 = 3;
/// A member or contact that does not answer is asked after 1 s, then half as often each time, up to this:
/// a node that comes back greets us by itself.
const RETRY_EVERY_MAX: Duration = Duration::from_secs(30);
/// A member that has not answered for this long is forgotten: longer than any reboot, shorter than names
/// pile up where nodes come and go by autoscaling.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// Every member is greeted by every other each second: 10,000 are 10,000 small requests a second on each
/// node, which is where this form of membership ends.
pub(super) const MEMBERS_MAX: usize = 10_000;

/// An address that may belong to a member, and the names its certificate may carry for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Contact {
    /// `host:port` to dial.
    pub(super) address: String,
    /// A certificate that names any of these is the one we look for.
    pub(super) names: Vec<String>,
}

/// Whom to greet next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Contact(Contact),
    Member { member: Member, alive: bool },
}

/// What happened outside.
#[derive(Debug)]
pub(super) enum Event {
    /// The target answered, proven to be `member`.
    Answered { target: Target, member: Member },
    /// It did not. `final_` if asking again at once is pointless: nothing listens there, or it refused us.
    Failed { target: Target, reason: String, is_final: bool },
    /// Somebody saw a connection to this member die.
    Doubted { name: String },
    /// What a seed stands for now.
    Resolved { seed: String, contacts: BTreeSet<Contact> },
}

/// What the view has become: for logs, and for the connections that end with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Joined(Member),
    /// Another daemon under a known name; connections to the old one are dead.
    Replaced {
        old: Member,
        new: Member,
    },
    Unreachable {
        member: Member,
        reason: String,
    },
    Forgotten(Member),
    /// A contact does not answer; told once for each reason.
    Silent {
        contact: Contact,
        reason: String,
    },
    /// Two daemons under one name.
    Conflict {
        name: String,
        stays: String,
        ignored: String,
    },
    Full,
}

/// Why somebody who greets us is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "another member at {stays} is also called `{name}`: give each node a certificate of its own name"
    )]
    NameTaken { name: String, stays: String },
    #[error("this mesh has reached its limit of {MEMBERS_MAX} members")]
    Full,
}

#[derive(Debug)]
enum Health {
    Joining,
    Alive { misses: u8 },
    Unreachable { reason: String, since: Instant, retry_after: Duration },
}

#[derive(Debug)]
struct Entry {
    member: Member,
    health: Health,
    /// When to greet it; `None` while a greeting is under way.
    next: Option<Instant>,
}

#[derive(Debug)]
struct ContactEntry {
    seeds: BTreeSet<String>,
    met: Met,
    next: Option<Instant>,
}

#[derive(Debug)]
enum Met {
    /// Not yet, and why not.
    Nobody {
        reason: Option<String>,
        retry_after: Duration,
    },
    Member(String),
    Myself,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Member(String),
    Contact(Contact),
}

/// The members, as this node sees them.
#[derive(Debug)]
pub(super) struct View {
    me: Member,
    members: BTreeMap<String, Entry>,
    contacts: BTreeMap<Contact, ContactEntry>,
    /// Everything with a time at which to greet it, soonest first.
    queue: BTreeSet<(Instant, Key)>,
    conflicts: BTreeSet<(String, String)>,
    full_told: bool,
}

impl View {
    pub(super) fn new(me: Member) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            contacts: BTreeMap::new(),
            queue: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            full_told: false,
        }
    }

    pub(super) fn me(&self) -> &Member {
        &self.me
    }

    /// We have learned under which address the others reach us.
    pub(super) fn advertise(&mut self, address: String) {
        self.me.address = address;
    }

    /// Who can be dialed now, this node included, by name.
    pub(super) fn live(&self) -> Vec<&Member> {
        let alive = self.members.values().filter(|entry| matches!(entry.health, Health::Alive { .. }));
        let mut live: Vec<&Member> = alive.map(|entry| &entry.member).chain([&self.me]).collect();
        live.sort_by(|a, b| a.name.cmp(&b.name));
        live
    }

    /// Everybody, and contacts that have not answered yet under their address.
    pub(super) fn all(&self) -> Vec<(Member, MemberState)> {
        let members = self.members.values().map(|entry| (entry.member.clone(), entry.health.state()));
        let contacts = self.contacts.iter().filter_map(|(contact, entry)| match &entry.met {
            Met::Nobody { reason: Some(reason), .. } => Some((
                Member {
                    name: contact.address.clone(),
                    address: contact.address.clone(),
                    zone: None,
                    generation: 0,
                    role: super::Role::Peer,
                },
                MemberState::Unreachable { reason: reason.clone() },
            )),
            Met::Nobody { reason: None, .. } | Met::Member(_) | Met::Myself => None,
        });
        let mut all: Vec<_> =
            members.chain(contacts).chain([(self.me.clone(), MemberState::Alive)]).collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        all
    }

    /// When [`Self::due`] has something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Up to `room` targets whose time has come. Each is silent until its outcome is applied.
    pub(super) fn due(&mut self, now: Instant, room: usize) -> (Vec<Target>, Vec<Change>) {
        let (mut targets, mut changes) = (Vec::new(), Vec::new());
        while targets.len() < room {
            let Some((_, key)) = self.queue.first().filter(|(at, _)| *at <= now).cloned() else { break };
            self.unschedule(&key);
            match key {
                Key::Contact(contact) if self.is_settled(&contact) => {
                    self.schedule(Key::Contact(contact), now + RETRY_EVERY_MAX);
                }
                Key::Contact(contact) => targets.push(Target::Contact(contact)),
                Key::Member(name) => self.member_due(&name, now, &mut targets, &mut changes),
            }
        }
        (targets, changes)
    }

    /// Whether asking there could tell us nothing new: it is ourselves, or a member that is alive.
    fn is_settled(&self, contact: &Contact) -> bool {
        match self.contacts.get(contact).map(|entry| &entry.met) {
            None | Some(Met::Myself) => true,
            Some(Met::Nobody { .. }) => false,
            Some(Met::Member(name)) => {
                self.members.get(name).is_some_and(|entry| matches!(entry.health, Health::Alive { .. }))
            }
        }
    }

    fn member_due(&mut self, name: &str, now: Instant, targets: &mut Vec<Target>, changes: &mut Vec<Change>) {
        let Some(entry) = self.members.get(name) else { return };
        if let Health::Unreachable { since, .. } = entry.health
            && now.duration_since(since) >= FORGET_AFTER
        {
            changes.extend(self.members.remove(name).map(|entry| Change::Forgotten(entry.member)));
            return;
        }
        let alive = matches!(entry.health, Health::Alive { .. });
        targets.push(Target::Member { member: entry.member.clone(), alive });
    }

    pub(super) fn apply(&mut self, event: Event, now: Instant) -> Vec<Change> {
        match event {
            Event::Answered { target: Target::Contact(contact), member } => {
                self.contact_answered(&contact, member, now)
            }
            Event::Answered { target: Target::Member { member: asked, .. }, member } => {
                self.member_answered(&asked, member, now)
            }
            Event::Failed { target: Target::Contact(contact), reason, .. } => {
                self.contact_failed(&contact, reason, now)
            }
            Event::Failed { target: Target::Member { member, .. }, reason, is_final } => {
                self.member_failed(&member, reason, is_final, now)
            }
            Event::Doubted { name } => {
                self.hurry(&name, now);
                Vec::new()
            }
            Event::Resolved { seed, contacts } => {
                self.resolved(&seed, contacts, now);
                Vec::new()
            }
        }
    }

    /// Somebody greeted us and is proven to have the name that it gives.
    pub(super) fn called(&mut self, member: Member, now: Instant) -> Result<Vec<Change>, Refusal> {
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

    fn contact_answered(&mut self, contact: &Contact, member: Member, now: Instant) -> Vec<Change> {
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

    fn member_answered(&mut self, asked: &Member, member: Member, now: Instant) -> Vec<Change> {
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

    fn contact_failed(&mut self, contact: &Contact, reason: String, now: Instant) -> Vec<Change> {
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

    fn member_failed(&mut self, asked: &Member, reason: String, is_final: bool, now: Instant) -> Vec<Change> {
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

    fn resolved(&mut self, seed: &str, contacts: BTreeSet<Contact>, now: Instant) {
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

    fn hurry(&mut self, name: &str, now: Instant) {
        // Without a time, a greeting is under way already.
        if self.members.get(name).is_some_and(|entry| entry.next.is_some()) {
            self.schedule(Key::Member(name.to_owned()), now);
        }
    }

    fn hurry_unless_alive(&mut self, name: &str, now: Instant) {
        if self.members.get(name).is_some_and(|entry| !matches!(entry.health, Health::Alive { .. })) {
            self.hurry(name, now);
        }
    }

    fn next_of(&mut self, key: &Key) -> Option<&mut Option<Instant>> {
        match key {
            Key::Member(name) => self.members.get_mut(name).map(|entry| &mut entry.next),
            Key::Contact(contact) => self.contacts.get_mut(contact).map(|entry| &mut entry.next),
        }
    }

    fn unschedule(&mut self, key: &Key) {
        if let Some(at) = self.next_of(key).and_then(Option::take) {
            self.queue.remove(&(at, key.clone()));
        }
    }

    fn schedule(&mut self, key: Key, at: Instant) {
        self.unschedule(&key);
        if let Some(next) = self.next_of(&key) {
            *next = Some(at);
            self.queue.insert((at, key));
        }
    }
}

impl Health {
    fn state(&self) -> MemberState {
        match self {
            Self::Joining => MemberState::Joining,
            Self::Alive { .. } => MemberState::Alive,
            Self::Unreachable { reason, .. } => MemberState::Unreachable { reason: reason.clone() },
        }
    }
}
