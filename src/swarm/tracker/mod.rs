//! The tracker of one digest: events in, decisions out, time given.
//!
//! ```text
//!   join / report / leave / answered / tick ──▶ Swarm ──▶ take_events(): (member, event)…
//! ```
//! Each piece is in one of three states, read off what is known of it:
//! *free* (nobody holds it, nobody reads it), *leased* (one reader fetches it from the origin), *held* (by one
//! member or more, under the statement of whoever vouched for it first). A member that leaves, or is
//! discredited, no longer holds; a piece without a holder is free again and its statement forgotten. What a leech
//! has is with nobody, since nobody gets it from there; nor does it count what a whole member has that gives nothing.
//!
//! Who gave wrong bytes or none, or read wrong ones, is *discredited*: a leech that nobody hears of, and whose word about
//! others does not count. It may have been wronged by its registry, its memory or its firewall, and would otherwise read
//! all of the blob for itself. What a leech reads comes to nobody else, so it reads only where nobody else can, and
//! nobody waits for it.
//!
//! Invariants: a piece is in one lease at most; a held piece has a statement unless only whole members hold it;
//! a discredited member holds nothing; a convicted name is no voucher.

mod audit;
mod feed;
mod holders;
mod leases;
mod neighbours;
mod zones;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::{
    audit::Audit,
    leases::Origin,
    zones::{Zone, ZoneId},
};
use super::message::{Event, Handle, Held, Join, Name, Report};
use crate::{
    mesh::{Member, Role},
    piece::{PieceLayout, PieceSet, Statement},
};

/// How long the members asked at a swarm's start may take to answer before leases are given without them: a
/// hundred answers take a few milliseconds; this bounds what a dead one costs a cold pull.
pub const POLL_MAX: Duration = Duration::from_millis(200);
/// Members that others say have the blob and that are asked, beside the first of each answer: twice as many as one
/// answer names.
const FOUND_MAX: usize = 32;
/// A puller says something once a second; three missed and it is gone. Nor is a member that was asked waited for any
/// longer: until then a node that is short of CPU may still say that it has what the origin does not give.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a swarm without an unfinished puller is kept for the next one: a rollout's waves come closer.
const LINGER: Duration = Duration::from_secs(120);
/// A puller costs a few kilobytes and its stream; more than the largest cluster has nodes.
pub const MEMBERS_MAX: usize = 16_384;
/// A reader or importer that stalled comes last for this long.
const STALL_KEPT: Duration = Duration::from_secs(10);
/// Reports of different members that discredit one: two, so that one liar cannot do it in a crowd.
const REFUSERS: usize = 2;

/// Why a join is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JoinError {
    #[error("the blob has {known} bytes in this swarm and {claimed} in the join")]
    Length { known: u64, claimed: u64 },
    #[error("the swarm has its {MEMBERS_MAX} members")]
    Full,
}

/// What a member answered to the question at the swarm's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    Whole,
    /// It will join.
    Pulling,
}

/// The swarm of one digest, as its tracker knows it.
pub struct Swarm {
    layout: PieceLayout,
    pieces: Vec<Piece>,
    members: BTreeMap<Handle, Puller>,
    next_handle: Handle,
    /// Members that were asked and have neither answered nor announced all that they hold.
    polled: BTreeSet<Name>,
    polled_at: Instant,
    /// Members that others have named.
    found: usize,
    origin: Origin,
    zones: Vec<Zone>,
    audit: Audit,
    discredited: BTreeSet<Name>,
    /// Those of them who stated wrong bytes.
    convicted: BTreeSet<Name>,
    unfinished_at: Instant,
    /// All of a small blob, once somebody has proven it.
    content: Option<Bytes>,
    /// Pieces that came to members of a large swarm and are not told yet, and statements.
    fresh: BTreeMap<Handle, Vec<u32>>,
    fresh_stated: Vec<Held>,
    told_at: Instant,
    paced: Duration,
    events: Vec<(Handle, Event)>,
}

#[derive(Clone, Default)]
struct Piece {
    stated: Option<(Statement, Name)>,
    holders: u32,
    /// Who read it, as long as nobody else has it.
    unspread: Option<Handle>,
}

struct Puller {
    member: Member,
    zone: ZoneId,
    /// Of whom it hears, and who hears of it.
    hears: BTreeSet<Handle>,
    heard_by: BTreeSet<Handle>,
    have: PieceSet,
    /// What a leech has: nobody gets it from there, so it holds nothing.
    taken: BTreeSet<u32>,
    whole: bool,
    /// Found by asking: it has no stream.
    passive: bool,
    /// Announcements still to come before it takes part in leases.
    to_announce: u32,
    reads_origin: bool,
    /// Pieces that it has read from the origin.
    read: u32,
    /// How many of those nobody else has yet: more than the others' shows a slow uplink.
    unspread: u32,
    /// Runs that it was to bring into its zone.
    imported: u32,
    last_stall: Option<Instant>,
    unclosed: bool,
    told_failed: bool,
    /// Who says that it gave wrong bytes, and who that it gives none.
    refused_by: BTreeSet<Handle>,
    unheard_by: BTreeSet<Handle>,
    /// It is whole and gives nothing: what it has counts as with nobody. Others may still ask it.
    silent: bool,
    discredited: bool,
    heard_at: Instant,
}

impl Puller {
    /// It takes and never gives.
    fn is_leech(&self) -> bool {
        self.member.role == Role::Leech || self.discredited
    }
}

impl Swarm {
    /// A new swarm. The shell asks the members in `polled` what they hold.
    #[must_use]
    pub fn new(blob_len: u64, polled: impl IntoIterator<Item = Name>, now: Instant) -> Self {
        let layout = PieceLayout::of(blob_len);
        Self {
            layout,
            pieces: vec![Piece::default(); layout.count() as usize],
            members: BTreeMap::new(),
            next_handle: 1,
            polled: polled.into_iter().collect(),
            polled_at: now,
            found: 0,
            origin: Origin::default(),
            zones: Vec::new(),
            audit: Audit::default(),
            discredited: BTreeSet::new(),
            convicted: BTreeSet::new(),
            unfinished_at: now,
            content: None,
            fresh: BTreeMap::new(),
            fresh_stated: Vec::new(),
            told_at: now,
            paced: Duration::ZERO,
            events: Vec::new(),
        }
    }

    /// What there is to tell, in order.
    pub fn take_events(&mut self) -> Vec<(Handle, Event)> {
        std::mem::take(&mut self.events)
    }

    /// Whether the member is still in the swarm.
    #[must_use]
    pub fn has(&self, handle: Handle) -> bool {
        self.members.contains_key(&handle)
    }

    /// Whether it can be forgotten.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.unfinished_at) > LINGER
    }

    /// A puller comes.
    ///
    /// # Errors
    /// It means another length, or the swarm is full.
    pub fn join(&mut self, join: &Join, now: Instant) -> Result<Handle, JoinError> {
        let known = self.layout.blob_len();
        if join.blob_len != known {
            return Err(JoinError::Length { known, claimed: join.blob_len });
        }
        // One place for each name: a stream opened again, or a member that was found by asking.
        if let Some(old) = self.handle_of(&join.from.name) {
            self.remove(old);
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(JoinError::Full);
        }
        let handle = self.add(join.from.clone(), now);
        let puller = self.members.get_mut(&handle).expect("just added");
        puller.passive = false;
        puller.reads_origin = join.reads_origin;
        puller.to_announce = join.held;
        if join.held == 0 {
            self.polled.remove(&join.from.name);
        }
        let discredited = puller.discredited;
        if discredited {
            self.tell(handle, Event::Discredited);
        } else {
            self.origin.joined(join.reads_origin);
        }
        self.welcome(handle);
        if join.whole {
            self.whole(handle);
        }
        for run in &join.reading {
            self.resume_lease(handle, run, now);
        }
        self.settle(now);
        Ok(handle)
    }

    /// The caller has proof that this member stated wrong bytes: it is discredited here, or will be when it comes.
    pub fn distrust(&mut self, name: &Name) {
        if let Some(handle) = self.handle_of(name) {
            self.discredit(handle);
        }
        self.discredited.insert(name.clone());
    }

    /// A puller says something; a handle that has left is ignored.
    pub fn reports(&mut self, handle: Handle, reports: impl IntoIterator<Item = Report>, now: Instant) {
        self.heard(handle, now);
        for report in reports {
            // What it said first may have put it out.
            if self.members.contains_key(&handle) {
                self.report(handle, report, now);
            }
        }
        self.settle(now);
    }

    fn report(&mut self, handle: Handle, report: Report, now: Instant) {
        let discredited = self.puller(handle).discredited;
        match report {
            // Its word about others, and about the registry, does not count.
            Report::Unclosed | Report::Verdict(_) | Report::Refused { .. } | Report::Silent { .. }
                if discredited => {}
            Report::Returned { run, .. } if discredited => self.reads_no_more(handle, &run),
            Report::Held(held) => self.held(handle, held, now),
            Report::Reading { start } => {
                self.progress(handle, start, now);
                self.import_progress(handle, start, now);
            }
            Report::Waiting { start } => self.origin_waits(handle, start, now),
            Report::Returned { run, failure, reason } => self.returned(handle, &run, (failure, reason), now),
            Report::Unclosed => self.puller(handle).unclosed = true,
            Report::Verdict(verdict) => self.verdict(handle, verdict),
            Report::Whole => self.whole(handle),
            Report::Lost { index } => self.lost(handle, index),
            Report::Refused { handle: other } => self.refused(handle, other),
            Report::Silent { handle: other } => self.unheard(handle, other),
            Report::Content(bytes) => self.learn(bytes),
        }
    }

    /// All of a small blob; the caller has checked its digest.
    pub fn learn(&mut self, bytes: Bytes) {
        if self.content.is_none() && bytes.len() as u64 == self.layout.blob_len() {
            self.tell_all(&Event::Content(bytes.clone()));
            self.content = Some(bytes);
        }
    }

    /// Whether it keeps the bytes of a small blob.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.content.is_some()
    }

    /// Anything came on the member's stream, if only a beat.
    pub fn heard(&mut self, handle: Handle, now: Instant) {
        if let Some(puller) = self.members.get_mut(&handle) {
            puller.heard_at = now;
        }
    }

    /// It has nothing to say: whatever it had to announce has come.
    pub fn beat(&mut self, handle: Handle, now: Instant) {
        self.heard(handle, now);
        if let Some(puller) = self.members.get_mut(&handle) {
            puller.to_announce = 0;
            let name = puller.member.name.clone();
            self.polled.remove(&name);
        }
        self.settle(now);
    }

    /// The stream ended, or the mesh lost the member.
    pub fn leave(&mut self, handle: Handle, now: Instant) {
        self.remove(handle);
        self.settle(now);
    }

    /// The mesh lost members: those found by asking go with it, the others with their streams.
    pub fn unreachable(&mut self, is_live: impl Fn(&str) -> bool, now: Instant) {
        let gone = self.members.iter().filter(|(_, p)| p.passive && !is_live(&p.member.name));
        let gone: Vec<Handle> = gone.map(|(&handle, _)| handle).collect();
        if !gone.is_empty() {
            gone.into_iter().for_each(|handle| self.remove(handle));
            self.settle(now);
        }
    }

    /// Somebody heard that this member has the blob: its answer is waited for as well. `false` if it is here already, or
    /// enough are, unless it is asked `anyway`.
    pub fn asks(&mut self, name: &Name, anyway: bool) -> bool {
        let has_room = anyway || self.found < FOUND_MAX;
        let is_new = has_room && self.handle_of(name).is_none() && self.polled.insert(name.clone());
        self.found += usize::from(is_new && !anyway);
        is_new
    }

    /// A member answered the question at the start.
    pub fn answered(&mut self, member: &Member, answer: Answer, now: Instant) {
        match answer {
            Answer::Pulling => return,
            Answer::Nothing => {}
            Answer::Whole if member.role == Role::Leech => {}
            Answer::Whole => {
                let is_new = self.handle_of(&member.name).is_none();
                if is_new && !self.discredited.contains(&member.name) && self.members.len() < MEMBERS_MAX {
                    let handle = self.add(member.clone(), now);
                    self.acquaint(handle);
                    self.whole(handle);
                }
            }
        }
        self.polled.remove(&member.name);
        self.settle(now);
    }

    /// Time passed: call it about ten times a second.
    pub fn tick(&mut self, now: Instant) {
        let silent = |p: &Puller| !p.passive && now.duration_since(p.heard_at) > SILENCE_MAX;
        let gone: Vec<Handle> = self.members.iter().filter(|(_, p)| silent(p)).map(|(&h, _)| h).collect();
        for handle in gone {
            self.remove(handle);
        }
        self.settle(now);
    }

    /// Draws the consequences of whatever just changed.
    fn settle(&mut self, now: Instant) {
        let is_time = self.tell_fresh_in_time(now);
        let asked_for = now.duration_since(self.polled_at);
        if asked_for >= SILENCE_MAX {
            self.polled.clear();
        }
        self.end_leases(now);
        self.end_imports(now);
        let may_begin = self.polled.is_empty() || asked_for >= POLL_MAX;
        if may_begin {
            self.grant(now);
            self.grant_imports(now);
        }
        // What looks at every member, a large swarm does when it tells what is fresh.
        if is_time {
            self.reconsider_refused();
            if self.members.values().any(|puller| !puller.whole) {
                self.unfinished_at = now;
            }
            if may_begin {
                self.seek_auditor(now);
            }
            if self.polled.is_empty() {
                self.give_up_if_stuck(now);
            }
        }
    }

    fn handle_of(&self, name: &str) -> Option<Handle> {
        self.members.iter().find(|(_, puller)| puller.member.name == name).map(|(&handle, _)| handle)
    }

    fn puller(&mut self, handle: Handle) -> &mut Puller {
        self.members.get_mut(&handle).expect("callers have looked the handle up")
    }

    fn add(&mut self, member: Member, now: Instant) -> Handle {
        let handle = self.next_handle;
        self.next_handle += 1;
        // A leech asks everybody: what it brought into a zone would not be there.
        let discredited = self.discredited.contains(&member.name);
        let is_leech = member.role == Role::Leech || discredited;
        let zone = self.zone_of(member.zone.as_deref().filter(|_| !is_leech));
        self.zone_grows(zone);
        let puller = Puller {
            member,
            zone,
            hears: BTreeSet::new(),
            heard_by: BTreeSet::new(),
            have: PieceSet::empty(self.layout.count()),
            taken: BTreeSet::new(),
            whole: false,
            passive: true,
            to_announce: 0,
            reads_origin: false,
            read: 0,
            unspread: 0,
            imported: 0,
            last_stall: None,
            unclosed: false,
            told_failed: false,
            refused_by: BTreeSet::new(),
            unheard_by: BTreeSet::new(),
            silent: false,
            discredited,
            heard_at: now,
        };
        self.members.insert(handle, puller);
        handle
    }

    /// Tells a newcomer what is stated, and of others; and others of the newcomer.
    fn welcome(&mut self, newcomer: Handle) {
        if let Some(bytes) = self.content.clone() {
            self.tell(newcomer, Event::Content(bytes));
        }
        self.acquaint(newcomer);
        for (index, piece) in (0..).zip(&self.pieces) {
            if let Some((statement, voucher)) = &piece.stated {
                let held = Held { index, statement: *statement, voucher: voucher.clone() };
                self.events.push((newcomer, Event::Stated(held)));
            }
        }
    }

    fn tell(&mut self, handle: Handle, event: Event) {
        if self.members.get(&handle).is_some_and(|puller| !puller.passive) {
            self.events.push((handle, event));
        }
    }
}

#[cfg(test)]
mod tests;
