//! Who is here, as decisions: events in, actions and changes out, time as an argument, no I/O.
//!
//! ```text
//!  contact (a seed's address) ── answers ──▶ check: asked at its own address ── answers ──▶ member
//!  somebody calls or sends a frame ────────▶   │                                             │
//!                                              └── does not: no member, asked again          │
//!  heard of from a member ───────────────────────────────────────────────────────────────────┤
//!                                                                                            ▼
//!      foca: alive ── a probe fails, or it refuses a connection ──▶ suspect ── time is up ──▶ down
//!              ▲                                                      │                        │
//!              └─────────── its own word, as a new incarnation ───────┘                        │
//!              └─────────── its own word, as a new life ───────────────────────────────────────┘
//! ```
//! Whom one of us has proven, all believe: a member that somebody sees can be dialed, and the certificate names
//! it. What a frame's sender says of itself must be in the name of its certificate; what it says of others is
//! hearsay, as ever in SWIM, and refuted by them.
//!
//! foca decides who is alive. Around it: who may come in (`checks`, `contacts`), views made equal (`compare`),
//! new lives at a bounded rate, and the limits.

mod agenda;
mod checks;
mod compare;
mod contacts;
mod due;
mod event;
mod frame;
mod hear;
mod life;
mod outbox;
mod pace;
mod renew;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use foca::{Foca, NoCustomBroadcast, State};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use self::{
    agenda::{Agenda, Due},
    checks::Checks,
    contacts::Contacts,
    due::REVIVE_EVERY,
    frame::{Codec, Frame},
    outbox::Outbox,
    renew::Renewal,
    watch::Watch,
};
pub use self::{compare::CompareError, frame::FrameError, watch::WATCHED};
pub(in crate::mesh) use self::{
    contacts::Contact,
    life::{Life, key_of},
};
use crate::mesh::{Member, MemberState};

/// Members at a time, those that are down included: 10,000 and as many again that have come and gone within
/// the hour in a cluster that scales by itself. 16 MiB with names and addresses of usual length.
pub(in crate::mesh) const MEMBERS_MAX: usize = 16_384;
/// A member that has been down for this long is forgotten: longer than any reboot, shorter than names pile up
/// where nodes come and go by autoscaling.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// Who does not answer is asked again at least this often: a node that comes back calls by itself.
const RETRY_EVERY_MAX: Duration = Duration::from_secs(30);
/// And so soon at first: when a whole cluster starts, much is missed at once.
const COMPARE_AFTER: Duration = Duration::from_secs(1);
/// Whom to greet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum Target {
    Contact(Contact),
    Member(Life),
}

/// What is to be done outside.
#[derive(Debug)]
pub(in crate::mesh) enum Action {
    /// Ask who is there; the outcome is an [`Event`].
    Greet(Target),
    /// A frame for this member; if it cannot be sent, [`Event::Unsent`].
    Send { to: Life, frame: Bytes },
    /// Ask for a sign of life, no more: [`Event::Seen`] or [`Event::Missed`].
    Watch { who: Life },
    /// Make the views equal, from [`Swim::comparison`] on.
    Compare { with: Life },
}

/// What happened outside.
#[derive(Debug)]
pub(in crate::mesh) enum Event {
    /// The target answered and is proven to be `life`.
    Answered {
        target: Target,
        life: Life,
    },
    /// It did not. `is_final` if asking again at once is pointless: nothing listens there, or it refused us.
    Failed {
        target: Target,
        reason: String,
        is_final: bool,
    },
    /// A frame did not arrive.
    Unsent {
        to: Life,
        reason: String,
        is_final: bool,
    },
    Seen {
        who: Life,
    },
    /// As [`Event::Unsent`], of one that is watched.
    Missed {
        who: Life,
        reason: String,
        is_final: bool,
    },
    /// Somebody saw a connection to this member die.
    Doubted {
        name: String,
    },
    /// What a seed stands for now.
    Resolved {
        seed: String,
        contacts: BTreeSet<Contact>,
    },
}

/// What the view has become: for logs, and for the connections that end with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum Change {
    Joined(Member),
    /// Another daemon under a known name, or the same at another address; connections to the old one are dead.
    Replaced {
        old: Member,
        new: Member,
    },
    Unreachable {
        member: Member,
        reason: String,
    },
    Left(Member),
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

/// One who is down.
#[derive(Debug)]
struct Gone {
    since: Instant,
    reason: String,
    has_left: bool,
}

/// The members, as this node sees them.
pub(in crate::mesh) struct Swim {
    foca: Foca<Life, Codec, SmallRng, NoCustomBroadcast>,
    outbox: Outbox,
    agenda: Agenda,
    contacts: Contacts,
    checks: Checks,
    /// Those who are down, by key.
    gone: BTreeMap<u64, Gone>,
    /// Why a frame to somebody was lost, the last time, by key.
    losses: BTreeMap<u64, String>,
    renewal: Renewal,
    watch: Watch,
    has_left: bool,
    /// The number of members for which foca's settings are.
    paced_for: usize,
    compare_after: Duration,
    conflicts: BTreeSet<(String, String)>,
    full_told: bool,
    rng: SmallRng,
    actions: Vec<Action>,
    changes: Vec<Change>,
}

impl Swim {
    /// `seed` decides what is left to chance.
    pub(in crate::mesh) fn new(me: Member, seed: u64, now: Instant) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut agenda = Agenda::default();
        agenda.add(now + COMPARE_AFTER.mul_f64(rng.random_range(0.5..1.0)), Due::Compare);
        agenda.add(now + Duration::from_secs(1).mul_f64(rng.random_range(0.0..1.0)), Due::Watch);
        agenda.add(now + REVIVE_EVERY.mul_f64(rng.random_range(0.5..1.0)), Due::Revive);
        Self {
            foca: foca_of(Life::new(me, 0), rng.random()),
            outbox: Outbox::default(),
            agenda,
            contacts: Contacts::new(rng.random()),
            checks: Checks::default(),
            gone: BTreeMap::new(),
            losses: BTreeMap::new(),
            renewal: Renewal::default(),
            watch: Watch::default(),
            has_left: false,
            paced_for: 1,
            compare_after: COMPARE_AFTER,
            conflicts: BTreeSet::new(),
            full_told: false,
            rng,
            actions: Vec::new(),
            changes: Vec::new(),
        }
    }

    pub(in crate::mesh) fn me(&self) -> &Life {
        self.foca.identity()
    }

    /// This node's certificate has come, and with it its name. Nobody has been met before.
    pub(in crate::mesh) fn certified(&mut self, name: String, address: String) {
        let me = Member { name, address, ..self.me().member().clone() };
        self.foca = foca_of(Life::new(me, 0), self.rng.random());
    }

    /// We have learned under which address the others reach us.
    pub(in crate::mesh) fn advertise(&mut self, address: String, now: Instant) {
        if address == self.me().member().address {
            return;
        }
        let me = Member { address, ..self.me().member().clone() };
        if self.foca.iter_membership_state().len() == 0 {
            self.foca = foca_of(Life::new(me, 0), self.rng.random());
        } else {
            let life = Life::new(me, self.me().revision().saturating_add(1));
            self.become_life(life, now);
        }
    }

    /// Who can be dialed now, this node included, by name.
    pub(in crate::mesh) fn live(&self) -> Vec<&Member> {
        let mut live: Vec<&Member> = self.others().chain([self.me()]).map(Life::member).collect();
        live.sort_by(|a, b| a.name.cmp(&b.name));
        live
    }

    pub(in crate::mesh) fn live_named(&self, name: &str) -> Option<&Member> {
        self.others().chain([self.me()]).find(|life| life.name() == name).map(Life::member)
    }

    /// As [`Self::live`], by key, this node first.
    pub(in crate::mesh) fn ring(&self) -> Vec<&Member> {
        let me = self.me();
        let mut ring: Vec<&Life> = self.others().collect();
        ring.sort_unstable_by_key(|life| life.key().wrapping_sub(me.key()));
        [me].into_iter().chain(ring).map(Life::member).collect()
    }

    /// Everybody, and contacts that have not answered yet under their address.
    pub(in crate::mesh) fn all(&self) -> Vec<(Member, MemberState)> {
        let unreachable = |reason: &str| MemberState::Unreachable { reason: reason.to_owned() };
        let state = |known: &foca::Member<Life>| match (known.state(), self.checks.reason(known.id())) {
            (State::Alive | State::Suspect, None) => MemberState::Alive,
            (State::Alive | State::Suspect, Some(reason)) => unreachable(reason),
            (State::Down, _) => {
                unreachable(self.gone.get(&known.id().key()).map_or(UNKNOWN, |gone| &gone.reason))
            }
        };
        let known = self.foca.iter_membership_state();
        let mut all: Vec<_> = known.map(|known| (known.id().member().clone(), state(known))).collect();
        let news = self.checks.iter().filter(|(life, _)| self.known(life.key()).is_none());
        all.extend(
            news.map(|(life, reason)| {
                (life.member().clone(), reason.map_or(MemberState::Joining, unreachable))
            }),
        );
        // A contact may not have been asked since the member behind it has called here by itself.
        let told: BTreeSet<String> = all.iter().map(|(member, _)| member.address.clone()).collect();
        let silent = self.contacts.silent().filter(|(address, _)| !told.contains(*address));
        all.extend(silent.map(|(address, reason)| (nameless(address), unreachable(reason))));
        all.push((self.me().member().clone(), MemberState::Alive));
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        all
    }

    /// When [`Self::poll`] has something next; greetings do not count while there is no room for one.
    pub(in crate::mesh) fn next_due(&self, room: usize) -> Option<Instant> {
        let greetings = [self.contacts.next(), self.checks.next()].into_iter().filter(|_| room > 0);
        greetings.chain([self.agenda.next()]).flatten().min()
    }

    /// Does what is due, with at most `room` new greetings.
    pub(in crate::mesh) fn poll(&mut self, room: usize, now: Instant) {
        self.agenda.wake(now);
        while let Some(due) = self.agenda.pop(now) {
            self.act(due, now);
        }
        for _ in 0..room {
            let Some(target) = self.next_greeting(now) else { break };
            self.actions.push(Action::Greet(target));
        }
    }

    pub(in crate::mesh) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes those that `is_taken` says.
    pub(in crate::mesh) fn take_actions_if(&mut self, mut is_taken: impl FnMut(&Action) -> bool) {
        self.actions.retain(|action| !is_taken(action));
    }

    pub(in crate::mesh) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Says good-bye; after that this node is in no mesh.
    pub(in crate::mesh) fn leave(&mut self, now: Instant) {
        self.has_left = true;
        let left = self.foca.leave_cluster(&mut self.outbox);
        // Twice as many as foca tells, since this node will not tell it again.
        let told = left.and_then(|()| self.foca.gossip(&mut self.outbox));
        self.settle(told, now);
    }

    /// Frames of news, and nothing else done.
    #[cfg(test)]
    pub(in crate::mesh) fn gossip(&mut self) -> Vec<Vec<u8>> {
        let before = std::mem::take(&mut self.outbox);
        self.foca.gossip(&mut self.outbox).expect("gossip is encoded");
        std::mem::replace(&mut self.outbox, before)
            .frames
            .into_iter()
            .map(|(_, frame)| frame.into())
            .collect()
    }

    fn known(&self, key: u64) -> Option<&foca::Member<Life>> {
        self.known_by(|known| known.id().key() == key)
    }

    fn known_by(&self, fits: impl Fn(&foca::Member<Life>) -> bool) -> Option<&foca::Member<Life>> {
        self.foca.iter_membership_state().find(|known| fits(known))
    }

    /// Who can be dialed now, but this node.
    fn others(&self) -> impl Iterator<Item = &Life> {
        self.active().filter(|life| self.checks.reason(life).is_none())
    }

    fn active(&self) -> impl Iterator<Item = &Life> {
        self.foca.iter_members().map(foca::Member::id)
    }

    fn is_active(&self, life: &Life) -> bool {
        self.known(life.key()).is_some_and(|known| known.id() == life && known.state() != State::Down)
    }

    /// Any one of whom `fits` is true, each with the same chance.
    fn any(&mut self, fits: impl Fn(&foca::Member<Life>) -> bool) -> Option<Life> {
        let count = self.foca.iter_membership_state().filter(|known| fits(known)).count();
        let chosen = (count > 0).then(|| self.rng.random_range(0..count))?;
        self.foca
            .iter_membership_state()
            .filter(|known| fits(known))
            .nth(chosen)
            .map(|known| known.id().clone())
    }

    /// Tells once for each pair; forgotten all at once, so that a churn of names cannot fill memory.
    fn conflict(&mut self, name: &str, stays: String, ignored: String) {
        if self.conflicts.len() >= MEMBERS_MAX {
            self.conflicts.clear();
        }
        if self.conflicts.insert((name.to_owned(), ignored.clone())) {
            self.changes.push(Change::Conflict { name: name.to_owned(), stays, ignored });
        }
    }

    fn full(&mut self) {
        if !std::mem::replace(&mut self.full_told, true) {
            self.changes.push(Change::Full);
        }
    }
}

/// What is said of one whose end nobody here has seen.
const UNKNOWN: &str = "the others cannot reach it";
/// What is said of one who said good-bye to this node.
pub const LEFT: &str = "it left";

fn foca_of(me: Life, seed: u64) -> Foca<Life, Codec, SmallRng, NoCustomBroadcast> {
    Foca::new(me, pace::config(1), SmallRng::seed_from_u64(seed), Codec)
}

/// A contact that has not said who it is, in the shape of a member.
fn nameless(address: &str) -> Member {
    let (name, address) = (address.to_owned(), address.to_owned());
    Member { name, address, zone: None, generation: 0, role: crate::mesh::Role::Peer }
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "figures of a simulation")]
mod sim;
#[cfg(test)]
mod tests;
