//! What this swarm may have of the readers that its registry host allows the whole cluster (`swarm::readers`).

use std::time::{Duration, Instant};

use super::{Swarm, leases::Origin};
use crate::swarm::{message::Handle, readers::Host};

pub(super) struct HostShare {
    /// The host that was named first. A blob that two registries have is counted under this one.
    name: Option<Host>,
    /// Leases that may be out; as many as the swarm likes until somebody divides.
    allowed: usize,
    pub(super) leased_at: Option<Instant>,
    throttled: Option<Duration>,
}

impl Default for HostShare {
    fn default() -> Self {
        Self { name: None, allowed: usize::MAX, leased_at: None, throttled: None }
    }
}

impl Origin {
    /// A reader names the host that it will ask.
    pub(super) fn named(&mut self, host: Option<&Host>) {
        if self.host.name.is_none() {
            self.host.name = host.filter(|host| !host.is_empty()).cloned();
        }
    }
}

impl Swarm {
    /// The registry's host, once somebody has named it.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.origin.host.name.as_deref()
    }

    /// Leases on the origin that are out.
    #[must_use]
    pub fn readers(&self) -> u32 {
        u32::try_from(self.origin.feed.leases().len()).unwrap_or(u32::MAX)
    }

    /// Leases that it would have out if it might: one for each reader, and the next one while that one ends.
    #[must_use]
    pub fn wants(&self) -> u32 {
        let (able, out) = (self.able(), self.readers());
        if able == 0 || !self.may_lease() {
            return out;
        }
        let most = 2 * self.readers_max(able);
        let free = u32::try_from(self.free().take(most).count()).expect("a few");
        (out + free).min(u32::try_from(most).expect("a few")).max(out)
    }

    /// When it last gave a lease.
    #[must_use]
    pub fn leased_at(&self) -> Option<Instant> {
        self.origin.host.leased_at
    }

    /// For how long its host asked a reader to be left alone, since this was last taken.
    pub fn take_throttled(&mut self) -> Option<Duration> {
        self.origin.host.throttled.take()
    }

    /// So many leases may be out, and none is given before `quiet_until`.
    pub fn allow(&mut self, readers: u32, quiet_until: Option<Instant>, now: Instant) {
        self.origin.host.allowed = readers as usize;
        self.origin.quiet_until = self.origin.quiet_until.max(quiet_until);
        self.settle(now);
    }

    pub(super) fn has_room_at_host(&self) -> bool {
        self.origin.feed.leases().len() < self.origin.host.allowed
    }

    /// The origin asked `reader` to leave it alone: all who read from the same host hear of it.
    pub(super) fn throttled(&mut self, reader: Handle, retry_after: Duration) {
        let asked = self.members.get(&reader).and_then(|puller| puller.origin.as_ref());
        if !retry_after.is_zero() && asked.is_some() && asked == self.origin.host.name.as_ref() {
            self.origin.host.throttled = self.origin.host.throttled.max(Some(retry_after));
        }
    }
}
