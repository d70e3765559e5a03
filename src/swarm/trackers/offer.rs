//! Holders of what this member tracks, and telling others what it holds itself.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Inner, Trackers};
use crate::{
    mesh::{Member, Role, hrw_first},
    oci::Digest,
    swarm::offers::{Offers, Told},
    wire::mesh::{self as wire, swarm_client::SwarmClient},
};

/// One member is told at a time, at most so often: telling is no hurry, and each may be a connection.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Seconds after which it is looked whom to tell what, and those after which something new here is: a tenth of a second
/// of work with ten thousand members and five hundred blobs.
const PLAN_EVERY: u32 = 30;
const PLAN_NEWS_EVERY: u32 = 5;
const TELL_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Offering {
    pub(super) offers: Mutex<Offers>,
}

impl Trackers {
    /// A member says that it holds these.
    pub fn offered(&self, from: &str, digests: Vec<Digest>) {
        self.0.offering.offers.lock().told(from, digests, Instant::now());
    }

    /// Whether somebody has said so, and not so long ago.
    #[must_use]
    pub fn knows_holder(&self, digest: &Digest, name: &str) -> bool {
        self.0.offering.offers.lock().of(digest, Instant::now()).iter().any(|holder| *holder == name)
    }

    /// Whom to ask when a swarm begins: the first in the digest's rank, and whoever has said that it holds the blob.
    pub(super) fn to_ask(&self, digest: &Digest, but: &str) -> Vec<Member> {
        let mut ranked = self.0.mesh.rank(digest);
        ranked.retain(|member| member.name != but);
        let rest = ranked.split_off(ranked.len().min(self.0.polled_max));
        let offers = self.0.offering.offers.lock();
        let holders: HashSet<&String> = offers.of(digest, Instant::now()).into_iter().collect();
        ranked.extend(rest.into_iter().filter(|member| holders.contains(&member.name)));
        ranked
    }

    async fn tell_one(&self, told: &mut Told) {
        let Some((member, digests)) = told.next(Instant::now()) else { return };
        if member.name == self.0.mesh.me().name {
            return self.offered(&member.name, digests);
        }
        let telling = async {
            let channel = self.0.mesh.control(&member).await.map_err(|error| error.to_string())?;
            let request = wire::OfferRequest { digests: digests.iter().map(ToString::to_string).collect() };
            SwarmClient::new(channel).offer(request).await.map_err(|status| status.to_string())
        };
        let heard = tokio::time::timeout(TELL_MAX, telling).await;
        if let Ok(Err(why)) = &heard {
            tracing::debug!(member = %member.name, "was not told what is here: {why}");
        }
        if !matches!(heard, Ok(Ok(_))) {
            told.unheard(&digests);
        }
    }
}

/// In a small mesh everybody is asked, and nobody needs to be told.
pub(super) async fn keep_telling(inner: Weak<Inner>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = Told::default();
    let Some(mut news) = inner.upgrade().map(|inner| inner.store.holdings_changed()) else { return };
    let mut since = PLAN_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => since += 1,
        }
        let Some(inner) = inner.upgrade() else { return };
        let trackers = Trackers(inner);
        let has_news = since >= PLAN_NEWS_EVERY && news.has_changed().unwrap_or(false);
        if has_news || since >= PLAN_EVERY {
            since = 0;
            news.mark_unchanged();
            told = trackers.plan(told).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = trackers.tell_one(&mut told) => {}
        }
    }
}

impl Trackers {
    async fn plan(&self, mut told: Told) -> Told {
        let members = self.0.mesh.members();
        if members.len() <= self.0.polled_max + 1 || self.0.mesh.me().role == Role::Leech {
            return Told::default();
        }
        let inner = Arc::clone(&self.0);
        let planned = self.0.tasks.spawn_blocking(move || {
            let held = inner.store.holdings().into_iter().filter_map(|(digest, _)| {
                let first = hrw_first(&digest, &members)?.clone();
                Some((digest, first))
            });
            told.plan(held.collect(), Instant::now());
            told
        });
        planned.await.unwrap_or_default()
    }
}
