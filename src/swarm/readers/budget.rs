//! A member's share of the readers at each host, and what its swarms have of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{ASK_EVERY, Ask, Host, READERS_ALONE, READERS_MAX, SHARE_LIFE, Share, divide};
use crate::swarm::tracker::Swarm;

/// What this member's trackers may have out, by host. One without wishes is forgotten.
#[derive(Default)]
pub struct Budget {
    hosts: BTreeMap<Host, Held>,
}

#[derive(Default)]
struct Held {
    share: u32,
    /// When the keeper granted it.
    granted_at: Option<Instant>,
    quiet_until: Option<Instant>,
    /// A reader was throttled, and no keeper has heard of it.
    throttled: bool,
    wants: u32,
    has: u32,
    /// When, and with what.
    asked: Option<(Instant, u32, u32)>,
    /// The keeper has not answered yet.
    asking: bool,
    /// No keeper has ever answered, and one did not.
    is_alone: bool,
}

impl Held {
    fn readers(&self, now: Instant) -> u32 {
        match self.granted_at {
            Some(at) if now.duration_since(at) < SHARE_LIFE => self.share,
            Some(_) => READERS_ALONE,
            None if self.is_alone => READERS_ALONE,
            None => 0,
        }
    }

    /// Whether it is time to ask: what is wanted has changed, or the last answer grows old.
    fn is_due(&self, now: Instant) -> bool {
        let grows_old = |(at, wants, has): (Instant, u32, u32)| {
            // Others may have what was out beyond the share.
            let gives_back = has > self.share && self.has < has;
            let is_over = (wants == 0) != (self.wants == 0);
            now.duration_since(at) >= ASK_EVERY || self.throttled || is_over || gives_back
        };
        !self.asking && self.asked.is_none_or(grows_old)
    }
}

impl Budget {
    /// Divides what there is among the swarms, those first that have waited longest for a lease.
    pub fn divide<'a>(&mut self, swarms: impl Iterator<Item = &'a mut Swarm>, now: Instant) {
        let mut by_host: BTreeMap<Host, Vec<&mut Swarm>> = BTreeMap::new();
        for swarm in swarms {
            match swarm.host().map(str::to_owned) {
                Some(host) => by_host.entry(host).or_default().push(swarm),
                // Whoever reads it does not say where.
                None => swarm.allow(u32::MAX, None, now),
            }
        }
        // What nobody pulls from any more is given back, which takes one more question.
        self.hosts.retain(|host, held| {
            (held.wants, held.has) = (0, 0);
            let is_quiet = held.quiet_until.is_some_and(|until| now < until);
            let holds = held.asking || held.asked.is_some_and(|(_, wants, _)| wants > 0);
            by_host.contains_key(host) || holds || is_quiet
        });
        for (host, mut swarms) in by_host {
            let held = self.hosts.entry(host).or_default();
            swarms.sort_by_key(|swarm| swarm.leased_at());
            for swarm in &mut swarms {
                if let Some(wait) = swarm.take_throttled() {
                    held.quiet_until = held.quiet_until.max(Some(now + wait));
                    held.throttled = true;
                }
            }
            let wants: Vec<u32> = swarms.iter().map(|swarm| swarm.wants()).collect();
            held.wants = wants.iter().sum::<u32>().min(READERS_MAX);
            held.has = swarms.iter().map(|swarm| swarm.readers()).sum::<u32>().min(READERS_MAX);
            let shares = divide(held.readers(now), &wants);
            for (swarm, share) in swarms.into_iter().zip(shares) {
                swarm.allow(share, held.quiet_until, now);
            }
        }
    }

    /// What to ask of the keepers now; each question is answered by [`Self::answered`].
    pub fn due(&mut self, now: Instant) -> Vec<Ask> {
        let due = self.hosts.iter_mut().filter(|(_, held)| held.is_due(now));
        due.map(|(host, held)| {
            held.asking = true;
            held.asked = Some((now, held.wants, held.has));
            let quiet = held.quiet_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
            let throttled = std::mem::take(&mut held.throttled);
            Ask { host: host.clone(), wants: held.wants, has: held.has, quiet, throttled }
        })
        .collect()
    }

    /// The keeper's answer, or none: then the question is still open, and due again.
    pub fn answered(&mut self, ask: &Ask, share: Option<Share>, now: Instant) {
        let Some(held) = self.hosts.get_mut(&ask.host) else { return };
        held.asking = false;
        match share {
            Some(share) => {
                (held.share, held.granted_at) = (share.readers, Some(now));
                let quiet = (!share.quiet.is_zero()).then_some(now + share.quiet);
                held.quiet_until = held.quiet_until.max(quiet);
            }
            None => {
                held.is_alone = true;
                held.asked = None;
                held.throttled |= ask.throttled;
            }
        }
    }
}
