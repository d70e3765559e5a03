//! Who holds what, in a mesh of more members than a tracker asks when a swarm begins.
//!
//! Each member tells the first in the rank of each digest that it holds it: so whoever will track a digest knows some
//! of its holders, asks them as well when the swarm begins, and the registry is asked for nothing that a member has. It is
//! hearsay: only what a holder answers then counts.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::message::{MessageError, Name, at_most};
use crate::{mesh::Member, oci::Digest, wire::mesh as wire};

/// Digests in one message: 100 KiB.
pub(super) const OFFERED_MAX: usize = 1024;
/// Digests for which holders are remembered, about 200 bytes each: in a cluster of ten thousand nodes with a hundred
/// thousand blobs a member has ten of them to track.
const DIGESTS_MAX: usize = 1 << 16;
/// Holders of each: a swarm needs one that is still there to begin with, and finds more as they pull.
const HOLDERS_MAX: usize = 16;
/// A member tells again so often. Five hundred blobs are five hundred members to tell: four a minute.
const EVERY: Duration = Duration::from_secs(2 * 3600);
/// Longer than twice that is not remembered.
const LIFE: Duration = Duration::from_secs(5 * 3600);

/// What others have told this member.
#[derive(Default)]
pub struct Offers {
    holders: HashMap<Digest, Vec<(Name, Instant)>>,
}

impl Offers {
    /// `from` says that it holds these.
    pub fn told(&mut self, from: &str, digests: Vec<Digest>, now: Instant) {
        for digest in digests {
            if self.holders.len() >= DIGESTS_MAX && !self.holders.contains_key(&digest) {
                self.holders
                    .retain(|_, holders| holders.iter().any(|(_, at)| now.duration_since(*at) < LIFE));
                if self.holders.len() >= DIGESTS_MAX {
                    return;
                }
            }
            let holders = self.holders.entry(digest).or_default();
            holders.retain(|(name, _)| name != from);
            if holders.len() >= HOLDERS_MAX {
                holders.remove(0);
            }
            holders.push((from.to_owned(), now));
        }
    }

    /// Whom to ask about this digest.
    #[must_use]
    pub fn of(&self, digest: &Digest, now: Instant) -> Vec<&Name> {
        let holders = self.holders.get(digest).into_iter().flatten();
        holders.filter(|(_, at)| now.duration_since(*at) < LIFE).map(|(name, _)| name).collect()
    }
}

/// What this member has told others.
#[derive(Default)]
pub struct Told {
    /// To which daemon, and when.
    told: HashMap<Digest, (Name, u64, Instant)>,
    due: BTreeMap<Name, (Member, Vec<Digest>)>,
}

impl Told {
    /// This member holds these, and who is first in the rank of each.
    pub fn plan(&mut self, held: Vec<(Digest, Member)>, now: Instant) {
        self.due.clear();
        let mut told = HashMap::with_capacity(held.len());
        for (digest, first) in held {
            let before = self.told.remove(&digest).filter(|(name, generation, at)| {
                *name == first.name && *generation == first.generation && now.duration_since(*at) < EVERY
            });
            match before {
                Some(before) => drop(told.insert(digest, before)),
                None => {
                    let (_, due) = self.due.entry(first.name.clone()).or_insert_with(|| (first, Vec::new()));
                    due.push(digest);
                }
            }
        }
        self.told = told;
    }

    /// Whom to tell next, of what.
    pub fn next(&mut self, now: Instant) -> Option<(Member, Vec<Digest>)> {
        let mut next = self.due.first_entry()?;
        let (member, digests) = next.get_mut();
        let (member, part) = (member.clone(), digests.split_off(digests.len().saturating_sub(OFFERED_MAX)));
        if digests.is_empty() {
            next.remove();
        }
        for digest in &part {
            self.told.insert(digest.clone(), (member.name.clone(), member.generation, now));
        }
        Some((member, part))
    }

    /// It did not hear it.
    pub fn unheard(&mut self, digests: &[Digest]) {
        digests.iter().for_each(|digest| drop(self.told.remove(digest)));
    }
}

/// # Errors
/// One is no digest, or there are too many.
pub fn offer_from_wire(request: wire::OfferRequest) -> Result<Vec<Digest>, MessageError> {
    at_most("digests", request.digests.len() as u64, OFFERED_MAX as u64)?;
    request.digests.iter().map(|digest| Ok(digest.parse()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mesh::Role, oci::Algorithm};

    fn digest(number: usize) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_le_bytes())
    }

    fn member(name: &str, generation: u64) -> Member {
        Member { name: name.into(), address: "h:1".into(), zone: None, generation, role: Role::Peer }
    }

    #[test]
    fn the_last_holders_are_remembered_for_a_while() {
        let now = Instant::now();
        let mut offers = Offers::default();
        for number in 0..HOLDERS_MAX + 2 {
            offers.told(&format!("n{number}"), vec![digest(1)], now);
        }
        offers.told("n5", vec![digest(1), digest(2)], now + EVERY);
        assert_eq!(offers.of(&digest(1), now + EVERY).len(), HOLDERS_MAX);
        assert!(!offers.of(&digest(1), now).contains(&&"n1".to_owned()));
        assert_eq!(offers.of(&digest(1), now + LIFE), ["n5"]);
        assert!(offers.of(&digest(3), now).is_empty());
    }

    #[test]
    fn what_is_too_much_is_not_remembered() {
        let now = Instant::now();
        let mut offers = Offers::default();
        offers.told("a", (0..DIGESTS_MAX + 5).map(digest).collect(), now);
        assert_eq!(offers.holders.len(), DIGESTS_MAX);
        offers.told("b", vec![digest(DIGESTS_MAX + 9)], now + LIFE);
        assert_eq!(offers.of(&digest(DIGESTS_MAX + 9), now + LIFE), ["b"]);
    }

    #[test]
    fn each_is_told_once_and_again_when_another_comes_first_or_time_has_passed() {
        let now = Instant::now();
        let mut told = Told::default();
        let held = |first: &Member| (0..3).map(|n| (digest(n), first.clone())).collect::<Vec<_>>();
        let a = member("a", 1);
        told.plan(held(&a), now);
        assert_eq!(told.next(now).unwrap().1.len(), 3);
        told.plan(held(&a), now);
        assert!(told.next(now).is_none());
        for (first, at) in [(member("b", 1), now), (member("b", 2), now), (member("b", 2), now + EVERY)] {
            told.plan(held(&first), at);
            let (member, digests) = told.next(at).unwrap();
            assert_eq!((&member, digests.len()), (&first, 3));
            assert!(told.next(at).is_none());
        }
        told.unheard(&[digest(1)]);
        told.plan(held(&member("b", 2)), now + EVERY);
        assert_eq!(told.next(now + EVERY).unwrap().1, [digest(1)]);
    }

    #[test]
    fn many_go_in_parts() {
        let now = Instant::now();
        let mut told = Told::default();
        told.plan((0..OFFERED_MAX + 3).map(|n| (digest(n), member("a", 1))).collect(), now);
        assert_eq!(told.next(now).unwrap().1.len() + told.next(now).unwrap().1.len(), OFFERED_MAX + 3);
        assert!(told.next(now).is_none());
        let digests = vec![digest(0).to_string(); OFFERED_MAX + 1];
        assert!(offer_from_wire(wire::OfferRequest { digests }).is_err());
        assert!(offer_from_wire(wire::OfferRequest { digests: vec!["sha256:x".into()] }).is_err());
    }
}
