//! When which namespaces are listed: soon after an event, all of them now and then.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::containerd::Event;

/// Everything is listed this often, so that an event that was lost is made up for. 10,000 blobs take 0.2 s.
const LIST_EVERY: Duration = Duration::from_secs(600);
/// Events that come together are answered by one listing: a pull makes a dozen within a second.
const GAP_MIN: Duration = Duration::from_secs(1);
/// And listings take no more than a tenth of the time, however large the node.
const GAP_TIMES: u32 = 9;

/// What is to be listed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listing {
    All,
    Namespaces(BTreeSet<String>),
}

/// Events in, listings out, time given.
pub(super) struct Due {
    namespaces: BTreeSet<String>,
    all_at: Instant,
    not_before: Instant,
}

impl Due {
    /// Everything is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { namespaces: BTreeSet::new(), all_at: now, not_before: now }
    }

    /// Something happened in a namespace that matters. A blob that was deleted needs no listing.
    pub(super) fn hear(&mut self, event: Event) {
        match event {
            Event::ImageCreated { namespace, .. }
            | Event::ImageUpdated { namespace, .. }
            | Event::ImageDeleted { namespace, .. }
            | Event::ContentCreated { namespace, .. } => {
                self.namespaces.insert(namespace);
            }
            Event::ContentDeleted { .. } => {}
        }
    }

    /// When to ask again.
    pub(super) fn at(&self) -> Instant {
        let wanted = if self.namespaces.is_empty() { self.all_at } else { self.not_before };
        wanted.min(self.all_at).max(self.not_before)
    }

    /// What is due; the caller lists it, and says when that was done.
    pub(super) fn take(&mut self, now: Instant) -> Listing {
        let namespaces = std::mem::take(&mut self.namespaces);
        if now >= self.all_at { Listing::All } else { Listing::Namespaces(namespaces) }
    }

    pub(super) fn listed(&mut self, listing: &Listing, began: Instant, now: Instant) {
        self.not_before = now + (now.duration_since(began) * GAP_TIMES).max(GAP_MIN);
        if *listing == Listing::All {
            self.all_at = now + LIST_EVERY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(namespace: &str) -> Event {
        Event::ImageCreated { namespace: namespace.into(), name: "a:b".into() }
    }

    fn only(namespace: &str) -> Listing {
        Listing::Namespaces(BTreeSet::from([namespace.to_owned()]))
    }

    #[test]
    fn all_is_listed_at_first_and_every_ten_minutes() {
        let start = Instant::now();
        let mut due = Due::new(start);
        assert_eq!((due.at(), due.take(start)), (start, Listing::All));
        due.listed(&Listing::All, start, start);
        assert_eq!(due.at(), start + LIST_EVERY);
        assert_eq!(due.take(start + LIST_EVERY), Listing::All);
    }

    #[test]
    fn events_are_answered_together_and_not_too_often() {
        let start = Instant::now();
        let mut due = Due::new(start);
        due.take(start);
        let slow = start + Duration::from_secs(2);
        due.listed(&Listing::All, start, slow);
        due.hear(created("k8s.io"));
        due.hear(created("k8s.io"));
        let at = slow + Duration::from_secs(18);
        assert_eq!(due.at(), at);
        assert_eq!(due.take(at), only("k8s.io"));
        due.listed(&only("k8s.io"), at, at);
        assert_eq!(due.at(), slow + LIST_EVERY);
        due.hear(created("moby"));
        assert_eq!(due.at(), at + GAP_MIN);
    }

    #[test]
    fn a_stream_of_events_does_not_put_off_the_full_listing() {
        let start = Instant::now();
        let mut due = Due::new(start);
        due.take(start);
        due.listed(&Listing::All, start, start);
        due.hear(created("k8s.io"));
        assert_eq!(due.take(start + LIST_EVERY), Listing::All);
    }
}
