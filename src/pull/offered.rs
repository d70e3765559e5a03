//! Reads what the store offers and nobody has read yet: at once when it is asked for, else when the node is idle.
//!
//! ```text
//!   a member, or a pull of this node ── asked ─┐
//!   layer::adopt, one after the other ─ idle ──┴─▶ one task for each digest: slice after slice ─▶ proven, or refused
//! ```
//! Nothing of it is served before all of it is proven: containerd's file may have rotted, and a member that serves
//! wrong bytes under its own statement is banned for it. Whoever asks waits for a moment, is told to come again, and
//! finds the same reading under way. A reading that began idle goes on at full speed once somebody asks.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::{Pulls, Shared, metrics};
use crate::{
    oci::Digest,
    store::{AdoptError, Blob, Reading},
};

/// Asked readings at a time. One fills a core with SHA-256 and most disks; a second one keeps a small blob from
/// waiting behind a large one.
const ASKED_MAX: usize = 2;
/// The node counts as idle this long after its last pull: those of one rollout follow each other more closely.
const QUIET: Duration = Duration::from_secs(5);
/// An idle reading rests so many times as long as it read: it takes a quarter of one core and of the disk's time.
const REST_TIMES: u32 = 3;

/// The readings of this node.
pub(super) struct Readings {
    under_way: Mutex<HashMap<Digest, UnderWay>>,
    slots: Semaphore,
    load: watch::Sender<Load>,
}

#[derive(Clone)]
struct UnderWay {
    asked: watch::Sender<bool>,
    over: CancellationToken,
}

/// What else the node does.
#[derive(Clone, Copy, Debug)]
struct Load {
    pulls: usize,
    since: Instant,
}

impl Load {
    /// How long until the node counts as idle, if nothing happens; `None` while it pulls.
    fn quiet_in(&self, now: Instant) -> Option<Duration> {
        (self.pulls == 0).then(|| QUIET.saturating_sub(now.duration_since(self.since)))
    }
}

/// The node pulls, until this is dropped.
pub(super) struct Pulling(watch::Sender<Load>);

impl Drop for Pulling {
    fn drop(&mut self) {
        self.0.send_modify(|load| *load = Load { pulls: load.pulls - 1, since: Instant::now() });
    }
}

impl Readings {
    pub(super) fn new() -> Self {
        let load = Load { pulls: 0, since: Instant::now() };
        Self { under_way: Mutex::default(), slots: Semaphore::new(ASKED_MAX), load: watch::Sender::new(load) }
    }

    pub(super) fn pulling(&self) -> Pulling {
        self.load.send_modify(|load| load.pulls += 1);
        Pulling(self.load.clone())
    }

    /// Pulls under way.
    pub(super) fn pulls(&self) -> usize {
        self.load.borrow().pulls
    }

    async fn idle(&self) {
        let mut load = self.load.subscribe();
        loop {
            let quiet_in = load.borrow_and_update().quiet_in(Instant::now());
            if quiet_in == Some(Duration::ZERO) {
                return;
            }
            let wait = quiet_in.unwrap_or(Duration::MAX);
            let _changed_or_quiet = tokio::time::timeout(wait, load.changed()).await;
        }
    }
}

impl Pulls {
    /// If the blob is offered and not proven, has it read, and waits for that no longer than `patience`; whether there
    /// is nothing to wait for any more.
    pub async fn read_offered(&self, digest: &Digest, patience: Duration) -> bool {
        let Some(reading) = self.0.reading(digest, true) else { return true };
        tokio::time::timeout(patience, reading.over.cancelled()).await.is_ok()
    }

    /// Has an offered blob read when the node is idle; returns when it is proven or refused.
    pub async fn read_when_idle(&self, digest: &Digest) {
        if let Some(reading) = self.0.reading(digest, false) {
            reading.over.cancelled().await;
        }
    }
}

impl Shared {
    /// A pull of this node looks here first: what containerd has for another namespace comes from no network.
    pub(super) async fn read_own(self: &Arc<Self>, digest: &Digest) {
        if let Some(reading) = self.reading(digest, true) {
            reading.over.cancelled().await;
        }
    }

    /// The reading of this digest, begun if need be; `None` if there is nothing to read.
    fn reading(self: &Arc<Self>, digest: &Digest, asked: bool) -> Option<UnderWay> {
        let mut under_way = self.readings.under_way.lock();
        if let Some(reading) = under_way.get(digest) {
            if asked {
                reading.asked.send_replace(true);
            }
            return Some(reading.clone());
        }
        if !self.store.is_unread(digest) {
            return None;
        }
        let reading = UnderWay { asked: watch::Sender::new(asked), over: CancellationToken::new() };
        under_way.insert(digest.clone(), reading.clone());
        let (shared, digest, over) = (Arc::clone(self), digest.clone(), reading.over.clone().drop_guard());
        let asked = reading.asked.subscribe();
        self.tasks.spawn(async move {
            let stop = shared.stop.clone();
            let read = stop.run_until_cancelled(shared.read(&digest, asked)).await;
            shared.readings.under_way.lock().remove(&digest);
            if let Some(read) = read {
                shared.say(&digest, read.as_ref());
            }
            drop(over);
        });
        Some(reading)
    }

    /// Reads to the end; `None` if it was proven without this, or withdrawn.
    async fn read(
        self: &Arc<Self>,
        digest: &Digest,
        mut asked: watch::Receiver<bool>,
    ) -> Result<Option<Blob>, AdoptError> {
        let mut slot = self.turn(&mut asked).await;
        let (shared, named) = (Arc::clone(self), digest.clone());
        let opened = self.tasks.spawn_blocking(move || shared.store.read_offer(&named)).await;
        let Some(mut reading) = opened.expect("opening a file does not panic")? else { return Ok(None) };
        loop {
            let began = Instant::now();
            let is_idle = slot.is_none();
            let stepped = self.tasks.spawn_blocking(move || step(reading, is_idle)).await;
            let (back, blob) = stepped.expect("reading a file does not panic");
            if let Some(blob) = blob? {
                return Ok(Some(blob));
            }
            reading = back;
            if slot.is_none() {
                let rest = tokio::time::sleep(began.elapsed() * REST_TIMES);
                tokio::select! {
                    () = rest => {}
                    _ = asked.wait_for(|asked| *asked) => {}
                }
                slot = self.turn(&mut asked).await;
            }
        }
    }

    /// Waits until the next slice may be read: for a slot once the blob is asked for, until then for an idle node.
    async fn turn(&self, asked: &mut watch::Receiver<bool>) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            _ = asked.wait_for(|asked| *asked) => {}
            () = self.readings.idle() => return None,
        }
        self.readings.slots.acquire().await.ok()
    }

    fn say(&self, digest: &Digest, read: Result<&Option<Blob>, &AdoptError>) {
        let outcome = match read {
            Ok(Some(_)) => "proven",
            Ok(None) => return,
            Err(AdoptError::Foreign { .. }) => "foreign",
            Err(AdoptError::Read { .. } | AdoptError::Write { .. }) => "failed",
        };
        self.metrics.offers_read.get_or_create(&metrics::Read { outcome }).inc();
        match read {
            Err(error) if !error.is_gone() => {
                tracing::warn!(%digest, error = error as &dyn std::error::Error, "a blob of containerd is not offered");
            }
            Ok(_) | Err(_) => {}
        }
    }
}

fn step(mut reading: Reading, is_idle: bool) -> (Reading, Result<Option<Blob>, AdoptError>) {
    let stepped = reading.step();
    if is_idle {
        reading.forget_cached();
    }
    (reading, stepped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_idle_a_while_after_its_last_pull() {
        let since = Instant::now();
        let load = |pulls| Load { pulls, since };
        assert_eq!(load(1).quiet_in(since + QUIET * 9), None);
        assert_eq!(load(0).quiet_in(since + QUIET / 5), Some(QUIET / 5 * 4));
        assert_eq!(load(0).quiet_in(since + QUIET * 2), Some(Duration::ZERO));
    }

    #[test]
    fn it_is_not_while_one_of_several_pulls_goes_on() {
        let readings = Readings::new();
        let later = || Instant::now() + QUIET * 2;
        let (first, second) = (readings.pulling(), readings.pulling());
        drop(first);
        assert_eq!(readings.load.borrow().quiet_in(later()), None);
        drop(second);
        assert_eq!(readings.load.borrow().quiet_in(later()), Some(Duration::ZERO));
    }
}
