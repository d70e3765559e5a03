//! Who may have how many readers at a host.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Ask, Host, READERS_MAX, SHARE_LIFE, Share, divide};
use crate::swarm::message::Name;

/// Hosts at a time: a cluster pulls from a handful. Beyond it one reader each is let go.
const HOSTS_MAX: usize = 1024;
/// A member has at most so many quarters of the limit: whoever comes next begins at once.
const QUARTERS_MAX: u32 = 3;
/// After a throttle the limit is half of what it was, and one more after so long without another: from one to twelve in a
/// minute.
const GROW_EVERY: Duration = Duration::from_secs(5);

/// The hosts that this member keeps: the first of their rank, or whoever others take for it.
pub struct Keeper {
    /// Readers at one host, for the whole cluster.
    limit_max: u32,
    hosts: BTreeMap<Host, Kept>,
}

struct Kept {
    limit: u32,
    /// When the limit was last raised, or the quiet that cut it ends.
    changed_at: Instant,
    quiet_until: Option<Instant>,
    callers: BTreeMap<Name, Caller>,
}

/// A member that tracks something of the host.
struct Caller {
    wants: u32,
    /// What it may have out, and does: it counts until it says otherwise.
    uses: u32,
    /// When it last had a share: those who wait longest come first.
    served_at: Option<Instant>,
    heard_at: Instant,
}

impl Keeper {
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self { limit_max: limit.clamp(1, READERS_MAX), hosts: BTreeMap::new() }
    }

    /// What `from` may have out until it asks again, at most for [`SHARE_LIFE`].
    pub fn ask(&mut self, from: &str, ask: &Ask, now: Instant) -> Share {
        self.forget(now);
        if !self.hosts.contains_key(&ask.host) && self.hosts.len() >= HOSTS_MAX {
            return Share { readers: ask.wants.min(1), quiet: ask.quiet };
        }
        let limit_max = self.limit_max;
        let kept = self.hosts.entry(ask.host.clone()).or_insert_with(|| Kept {
            limit: limit_max,
            changed_at: now,
            quiet_until: None,
            callers: BTreeMap::new(),
        });
        kept.quieten(ask, now);
        kept.grow(limit_max, now);
        Share { readers: kept.share(from, ask, now), quiet: kept.quiet(now) }
    }

    /// Who has not asked for long has nothing; a host is remembered while it is to recover, too.
    fn forget(&mut self, now: Instant) {
        let limit_max = self.limit_max;
        self.hosts.retain(|_, kept| {
            kept.callers.retain(|_, caller| now.duration_since(caller.heard_at) < SHARE_LIFE);
            kept.grow(limit_max, now);
            !kept.callers.is_empty() || kept.limit < limit_max || !kept.quiet(now).is_zero()
        });
    }
}

impl Kept {
    fn quiet(&self, now: Instant) -> Duration {
        self.quiet_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn quieten(&mut self, ask: &Ask, now: Instant) {
        let was_quiet = !self.quiet(now).is_zero();
        self.quiet_until = self.quiet_until.max((!ask.quiet.is_zero()).then_some(now + ask.quiet));
        // Readers that were refused together are refused once.
        if ask.throttled && !was_quiet {
            self.limit = (self.limit / 2).max(1);
            self.changed_at = now + ask.quiet;
        }
    }

    fn grow(&mut self, limit_max: u32, now: Instant) {
        while self.limit < limit_max && now.duration_since(self.changed_at) >= GROW_EVERY {
            self.limit += 1;
            self.changed_at += GROW_EVERY;
        }
    }

    fn share(&mut self, from: &str, ask: &Ask, now: Instant) -> u32 {
        let caller = Caller { wants: ask.wants, uses: ask.has, served_at: None, heard_at: now };
        let caller = match self.callers.remove(from) {
            Some(known) => Caller { served_at: known.served_at, ..caller },
            None => caller,
        };
        self.callers.insert(from.to_owned(), caller);
        let mut waiting: Vec<(&Name, &Caller)> = self.callers.iter().collect();
        waiting.sort_by_key(|(_, caller)| caller.served_at);
        let wants: Vec<u32> = waiting.iter().map(|(_, caller)| caller.wants).collect();
        let shares = divide(self.limit, &wants);
        let fair =
            waiting.iter().zip(shares).find(|((name, _), _)| *name == from).map_or(0, |(_, fair)| fair);
        let others: u32 =
            waiting.iter().filter(|(name, _)| *name != from).map(|(_, caller)| caller.uses).sum();
        let most = (self.limit * QUARTERS_MAX / 4).max(1);
        let readers = fair.min(most).min(self.limit.saturating_sub(others));
        let caller = self.callers.get_mut(from).expect("just put there");
        caller.uses = readers.max(ask.has);
        if readers > 0 {
            caller.served_at = Some(now);
        }
        readers
    }
}
