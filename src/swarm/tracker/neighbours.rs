//! Who hears of whom.
//!
//! Up to [`FULL_MAX`] members everybody hears of everybody at once. Beyond that full maps would cost members x members
//! x pieces: each newcomer and a few others, most of them of its own zone, are made each other's neighbours, and what
//! they got since is told in batches.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::Swarm;
use crate::swarm::message::{Event, Handle, Held, Run};

/// Members up to which everybody hears of everybody.
pub(super) const FULL_MAX: usize = 64;
/// Neighbours of a newcomer in a larger swarm. In a random graph of so many edges a piece is three steps from anybody
/// among 10,000.
const NEIGHBOURS: usize = 32;
/// Some of those are of other zones, where there are any.
const FROM_AFAR: usize = 6;
/// Who has less, since others left, gets more.
const NEIGHBOURS_MIN: usize = 16;
/// A message to each member may come so often: a tracker sends some ten thousand a second.
const MESSAGE_TIME: Duration = Duration::from_micros(100);
const PACE_MAX: Duration = Duration::from_millis(500);
/// Holders of an import that its importer hears of.
const HOLDERS: usize = 4;

impl Swarm {
    fn is_large(&self) -> bool {
        self.members.len() > FULL_MAX
    }

    /// How far apart batches are: ten thousand messages a second, for all members together.
    fn pace(&self) -> Duration {
        let members = u32::try_from(self.members.len().next_power_of_two()).unwrap_or(u32::MAX);
        if self.is_large() { (MESSAGE_TIME * members).min(PACE_MAX) } else { Duration::ZERO }
    }

    /// Makes a newcomer known, and others to it.
    pub(super) fn acquaint(&mut self, newcomer: Handle) {
        let pace = self.pace();
        if pace != self.paced {
            self.paced = pace;
            self.tell_all(&Event::Pace(pace));
        } else if !pace.is_zero() {
            self.tell(newcomer, Event::Pace(pace));
        }
        for other in self.strangers_of(newcomer, NEIGHBOURS) {
            self.introduce(newcomer, other);
            self.introduce(other, newcomer);
        }
    }

    /// Members that `handle` does not hear of, for it to hear of: all in a small swarm, else at most so many by chance.
    fn strangers_of(&self, handle: Handle, at_most: usize) -> Vec<Handle> {
        let Some(puller) = self.members.get(&handle) else { return Vec::new() };
        let is_stranger = |other: &Handle| *other != handle && !puller.hears.contains(other);
        let heard = self.members.iter().filter(|(_, other)| !other.discredited);
        let strangers: Vec<Handle> = heard.map(|(&other, _)| other).filter(is_stranger).collect();
        if !self.is_large() {
            return strangers;
        }
        let zone = puller.zone;
        let (mut near, mut far): (Vec<Handle>, Vec<Handle>) =
            strangers.into_iter().partition(|other| self.members[other].zone == zone);
        let mut random = SmallRng::seed_from_u64(u64::from(handle) << 32 | u64::from(self.next_handle));
        let few = FROM_AFAR.min(at_most / 4).max(at_most.saturating_sub(near.len()));
        let mut chosen = draw(&mut far, few, &mut random);
        chosen.extend(draw(&mut near, at_most - chosen.len(), &mut random));
        chosen
    }

    /// `handle` hears of `other` from now on, and learns what it has.
    pub(super) fn introduce(&mut self, handle: Handle, other: Handle) {
        let Some(listener) = self.members.get(&handle).filter(|puller| !puller.passive) else { return };
        if handle == other || listener.hears.contains(&other) || self.members[&other].discredited {
            return;
        }
        self.puller(handle).hears.insert(other);
        let known = self.members.get_mut(&other).expect("just looked up");
        known.heard_by.insert(handle);
        self.events.push((handle, Event::Joined { handle: other, member: known.member.clone() }));
        let news = match known.whole {
            true if known.is_leech() => None,
            true => Some(Event::Whole { handle: other }),
            false if known.have.is_empty() => None,
            false => Some(Event::Arrived { handle: other, pieces: known.have.iter().collect() }),
        };
        self.events.extend(news.map(|news| (handle, news)));
    }

    /// An importer hears of some who have what it is to import.
    pub(super) fn introduce_holders(&mut self, importer: Handle, run: &Run) {
        for index in run.clone() {
            let holds = |handle: &Handle| {
                let puller = &self.members[handle];
                !puller.silent && puller.have.contains(index)
            };
            let known = self.members[&importer].hears.iter().filter(|handle| holds(handle)).count();
            let more: Vec<Handle> = self
                .members
                .keys()
                .copied()
                .filter(|handle| *handle != importer && !self.members[&importer].hears.contains(handle))
                .filter(holds)
                .take(HOLDERS.saturating_sub(known))
                .collect();
            more.into_iter().for_each(|holder| self.introduce(importer, holder));
        }
    }

    /// A member has left: who heard of it does so no more, and who hears of few now hears of others.
    pub(super) fn forget_member(
        &mut self,
        handle: Handle,
        hears: &BTreeSet<Handle>,
        heard_by: &BTreeSet<Handle>,
    ) {
        self.fresh.remove(&handle);
        if !self.is_large() && !self.paced.is_zero() {
            self.become_small();
        }
        for other in hears {
            if let Some(puller) = self.members.get_mut(other) {
                puller.heard_by.remove(&handle);
            }
        }
        for &listener in heard_by {
            let Some(puller) = self.members.get_mut(&listener) else { continue };
            puller.hears.remove(&handle);
            let is_lonely = puller.hears.len() < NEIGHBOURS_MIN;
            self.tell(listener, Event::Gone { handle });
            if is_lonely && self.is_large() {
                for other in self.strangers_of(listener, NEIGHBOURS) {
                    self.introduce(listener, other);
                    self.introduce(other, listener);
                }
            }
        }
    }

    /// Everybody hears of everybody again, at once.
    fn become_small(&mut self) {
        self.paced = Duration::ZERO;
        self.tell_fresh();
        self.tell_all(&Event::Pace(Duration::ZERO));
        for handle in self.members.keys().copied().collect::<Vec<_>>() {
            for other in self.strangers_of(handle, NEIGHBOURS) {
                self.introduce(handle, other);
            }
        }
    }

    /// A piece is with one member more.
    pub(super) fn tell_arrived(&mut self, handle: Handle, index: u32) {
        if self.is_large() {
            self.fresh.entry(handle).or_default().push(index);
        } else {
            self.tell_hearers(handle, &Event::Arrived { handle, pieces: vec![index] });
        }
    }

    /// Somebody vouches for a piece that nobody had stated.
    pub(super) fn tell_stated(&mut self, held: Held) {
        if self.is_large() {
            self.fresh_stated.push(held);
        } else {
            self.tell_all(&Event::Stated(held));
        }
    }

    /// Tells what is fresh, if it is time; whether it was.
    pub(super) fn tell_fresh_in_time(&mut self, now: Instant) -> bool {
        let is_time = now.duration_since(self.told_at) >= self.paced;
        if is_time {
            self.told_at = now;
            self.tell_fresh();
        }
        is_time
    }

    /// What came since the last time, in one batch each.
    pub(super) fn tell_fresh(&mut self) {
        for held in std::mem::take(&mut self.fresh_stated) {
            self.tell_all(&Event::Stated(held));
        }
        for (handle, pieces) in std::mem::take(&mut self.fresh) {
            self.tell_hearers(handle, &Event::Arrived { handle, pieces });
        }
    }

    /// Tells everybody who hears of `handle`.
    pub(super) fn tell_hearers(&mut self, handle: Handle, event: &Event) {
        let Some(puller) = self.members.get(&handle) else { return };
        // A whole member has nothing left to learn.
        let hearers =
            puller.heard_by.iter().filter(|other| self.members.get(other).is_some_and(|p| !p.whole));
        self.events.extend(hearers.map(|&other| (other, event.clone())));
    }

    pub(super) fn tell_all(&mut self, event: &Event) {
        let others = self.members.iter().filter(|(_, puller)| !puller.passive && !puller.whole);
        self.events.extend(others.map(|(&handle, _)| (handle, event.clone())));
    }
}

/// Takes up to `count` of `from` by chance.
fn draw(from: &mut Vec<Handle>, count: usize, random: &mut SmallRng) -> Vec<Handle> {
    (0..count.min(from.len())).map(|_| from.swap_remove(random.random_range(0..from.len()))).collect()
}
