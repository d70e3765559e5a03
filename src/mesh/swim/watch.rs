//! Whom to watch in a mesh of more members than connections are kept to.
//!
//! SWIM probes one member after the other, whoever it is, so that beyond [`LARGE`] members nearly every probe makes a
//! connection first: three or four kilobytes, a signature on each side. There the probes are rare, and each member
//! watches the [`WATCHED`] that come after it in the order of their keys: an empty message a second, on connections
//! that are kept. So each is still asked once a second by somebody on average. One that does not answer [`MISSES`]
//! times is suspected, as if a probe had failed, and may refute that.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use foca::State;

use super::{Action, Due, Life, Swim};

/// Beyond so many members they are watched; as many connections are kept.
pub(super) const LARGE: usize = 128;
/// Members that each watches, and by whom each is watched. That all of them die within the same seconds as the one
/// that they watch is for the rare probes to notice.
pub const WATCHED: usize = 16;
/// Calls of a second each that one may miss: with a hundredth of all messages lost, two would be a suspicion every ten
/// seconds among a thousand members, and each is news for all (simulated: 13 KB/s a node).
const MISSES: u32 = 4;
/// One of them after the other.
const EVERY: Duration = Duration::from_secs(1);

/// The turns of a watch.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Whose turn it was last, by key, and how many had theirs since the first.
    last: Option<(u64, usize)>,
    /// Who has not answered and how often, by key: at most as many as are watched.
    missed: BTreeMap<u64, u32>,
}

impl Swim {
    pub(super) fn watch(&mut self, now: Instant) {
        self.agenda.add(now + EVERY, Due::Watch);
        if self.foca.num_members() < LARGE {
            return;
        }
        let me = self.me().key();
        let (after, turn) = match self.watch.last {
            Some((last, turns)) if turns < WATCHED => (last, turns + 1),
            Some(_) | None => (me, 1),
        };
        let next = self.active().min_by_key(|life| life.key().wrapping_sub(after).wrapping_sub(1)).cloned();
        if let Some(next) = next {
            self.watch.last = Some((next.key(), turn));
            self.actions.push(Action::Watch { who: next });
        }
    }

    pub(super) fn seen(&mut self, who: &Life) {
        self.watch.missed.remove(&who.key());
    }

    /// One that is watched does not answer: it is asked again at once, and suspected in the end.
    pub(super) fn missed(&mut self, who: Life, now: Instant) {
        let misses = self.watch.missed.remove(&who.key()).unwrap_or(0) + 1;
        if misses < MISSES {
            // Whoever is gone for another reason answers no more, and takes no place.
            let is_gone = |key: &u64| self.known(*key).is_none_or(|known| known.state() != State::Alive);
            let gone: Vec<u64> = self.watch.missed.keys().copied().filter(is_gone).collect();
            for key in gone {
                self.watch.missed.remove(&key);
            }
            if self.watch.missed.len() < WATCHED {
                self.watch.missed.insert(who.key(), misses);
                self.actions.push(Action::Watch { who });
            }
            return;
        }
        let known = self.known(who.key()).filter(|known| *known.id() == who);
        if let Some(known) = known.filter(|known| known.state() == State::Alive) {
            let incarnation = known.incarnation();
            self.suspect(who, incarnation, now);
        }
    }
}
