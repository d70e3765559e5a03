//! Who is here, as decisions: events in, changes out, time as an argument, no I/O.
//!
//! ```text
//!  contact (a seed's address) ── answers ──▶ Joining ── answers at its own address ──▶ Alive
//!  somebody's Hello, or introduced by one ─▶    │                                       │  refused, or
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

mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::mesh::{Member, MemberState};

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
/// After this many rounds of greetings, about as many seconds, the next member in turn is asked whom it
/// knows: what two who joined at the same moment have missed of each other is mended within it.
const INTRODUCE_ROUNDS: usize = 30;
/// Every member is greeted by every other each second: 10,000 are 10,000 small requests a second on each
/// node, which is where this form of membership ends.
pub(in crate::mesh) const MEMBERS_MAX: usize = 10_000;

/// An address that may belong to a member, and the names its certificate may carry for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::mesh) struct Contact {
    /// `host:port` to dial.
    pub(in crate::mesh) address: String,
    /// A certificate that names any of these is the one we look for.
    pub(in crate::mesh) names: Vec<String>,
}

/// Whom to greet next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum Target {
    Contact(Contact),
    Member { member: Member, alive: bool, introduce: bool },
}

/// What happened outside.
#[derive(Debug)]
pub(in crate::mesh) enum Event {
    /// The target answered, proven to be `member`; `heard` is whom it introduced.
    Answered { target: Target, member: Member, heard: Vec<Member> },
    /// It did not. `final_` if asking again at once is pointless: nothing listens there, or it refused us.
    Failed { target: Target, reason: String, is_final: bool },
    /// Somebody saw a connection to this member die.
    Doubted { name: String },
    /// What a seed stands for now.
    Resolved { seed: String, contacts: BTreeSet<Contact> },
}

/// What the view has become: for logs, and for the connections that end with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum Change {
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
pub(in crate::mesh) enum Refusal {
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
pub(in crate::mesh) struct View {
    me: Member,
    members: BTreeMap<String, Entry>,
    contacts: BTreeMap<Contact, ContactEntry>,
    /// Everything with a time at which to greet it, soonest first.
    queue: BTreeSet<(Instant, Key)>,
    conflicts: BTreeSet<(String, String)>,
    full_told: bool,
    /// Greetings of live members since one was asked to introduce.
    greetings: usize,
}

impl View {
    pub(in crate::mesh) fn new(me: Member) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            contacts: BTreeMap::new(),
            queue: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            full_told: false,
            greetings: 0,
        }
    }

    pub(in crate::mesh) fn me(&self) -> &Member {
        &self.me
    }

    /// We have learned under which address the others reach us.
    pub(in crate::mesh) fn advertise(&mut self, address: String) {
        self.me.address = address;
    }

    /// This node's certificate has come, and with it its name.
    pub(in crate::mesh) fn certified(&mut self, name: String, address: String) {
        self.me.name = name;
        self.me.address = address;
    }

    /// Who can be dialed now, this node included, by name.
    pub(in crate::mesh) fn live(&self) -> Vec<&Member> {
        let alive = self.members.values().filter(|entry| matches!(entry.health, Health::Alive { .. }));
        let mut live: Vec<&Member> = alive.map(|entry| &entry.member).chain([&self.me]).collect();
        live.sort_by(|a, b| a.name.cmp(&b.name));
        live
    }

    /// Whom to introduce to `caller`: also who has not answered us yet, since of two who join at once each
    /// would else miss the other.
    pub(in crate::mesh) fn others_than(&self, caller: &str) -> impl Iterator<Item = &Member> {
        let known = self.members.values().filter(|entry| !matches!(entry.health, Health::Unreachable { .. }));
        known.map(|entry| &entry.member).filter(move |member| member.name != caller)
    }

    /// Everybody, and contacts that have not answered yet under their address.
    pub(in crate::mesh) fn all(&self) -> Vec<(Member, MemberState)> {
        let members = self.members.values().map(|entry| (entry.member.clone(), entry.health.state()));
        // A contact's next greeting may be a while off when the member behind it has called here by itself.
        let known = |address: &str| self.members.values().any(|entry| entry.member.address == address);
        let unknown = self.contacts.iter().filter(|(contact, _)| !known(&contact.address));
        let contacts = unknown.filter_map(|(contact, entry)| match &entry.met {
            Met::Nobody { reason: Some(reason), .. } => Some((
                Member {
                    name: contact.address.clone(),
                    address: contact.address.clone(),
                    zone: None,
                    generation: 0,
                    role: crate::mesh::Role::Peer,
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
    pub(in crate::mesh) fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Up to `room` targets whose time has come. Each is silent until its outcome is applied.
    pub(in crate::mesh) fn due(&mut self, now: Instant, room: usize) -> (Vec<Target>, Vec<Change>) {
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
        let (member, alive) = (entry.member.clone(), matches!(entry.health, Health::Alive { .. }));
        let introduce = alive && self.is_turn_to_introduce();
        targets.push(Target::Member { member, alive, introduce });
    }

    /// One greeting more than some whole rounds: so it is another member's turn each time.
    fn is_turn_to_introduce(&mut self) -> bool {
        self.greetings += 1;
        let turn = self.greetings > self.members.len() * INTRODUCE_ROUNDS;
        if turn {
            self.greetings = 0;
        }
        turn
    }

    pub(in crate::mesh) fn apply(&mut self, event: Event, now: Instant) -> Vec<Change> {
        match event {
            Event::Answered { target: Target::Contact(contact), member, heard } => {
                let mut changes = self.contact_answered(&contact, member, now);
                changes.extend(self.heard_of(heard, now));
                changes
            }
            Event::Answered { target: Target::Member { member: asked, .. }, member, heard } => {
                let mut changes = self.member_answered(&asked, member, now);
                changes.extend(self.heard_of(heard, now));
                changes
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

#[cfg(test)]
mod tests;
