//! Bytes a second from all registries together.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Unused time that counts: a tenth of a second, several chunks at any rate that carries images.
const BURST: Duration = Duration::from_millis(100);

/// The rate in force; it may change at any time.
#[derive(Debug)]
pub(super) struct Rate {
    bucket: Mutex<Bucket>,
    changed: Notify,
}

impl Rate {
    /// `None`, or 0, is no limit.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bucket: Mutex::new(Bucket::new(bytes_per_second)), changed: Notify::new() }
    }

    /// Another rate from now on. Whoever waits for the old one goes at once.
    pub(super) fn set(&self, bytes_per_second: Option<u64>) {
        let new = Bucket::new(bytes_per_second);
        let mut bucket = self.bucket.lock();
        if bucket.bytes_per_second != new.bytes_per_second {
            *bucket = new;
            self.changed.notify_waiters();
        }
    }

    /// Takes `bytes` that have arrived; the moment before which no more should be read.
    pub(super) fn take(&self, bytes: usize) -> Option<Instant> {
        self.bucket.lock().take(bytes, Instant::now())
    }

    /// Waits until this moment, which [`Self::take`] gave.
    pub(super) async fn paid(&self, at: Instant) {
        // Listens before it looks: no change is missed in between.
        let changed = self.changed.notified();
        if self.bucket.lock().paid_until.is_some_and(|until| until >= at) {
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = changed => {}
            }
        }
    }
}

/// A leaky bucket that keeps one moment: when everything taken so far is paid for.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: Option<u64>,
    paid_until: Option<Instant>,
}

impl Bucket {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), paid_until: None }
    }

    fn take(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = self.paid_until.map_or(earliest, |until| until.max(earliest));
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = start + cost;
        self.paid_until = Some(until);
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_long_run_keeps_to_the_rate() {
        let start = Instant::now();
        let mut rate = Bucket::new(Some(1000));
        let mut now = start;
        for _ in 0..50 {
            now = now.max(rate.take(100, now).unwrap());
        }
        let took = now - start;
        assert_eq!(took, Duration::from_secs(5) - BURST);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let start = Instant::now();
        let mut rate = Bucket::new(Some(1000));
        rate.take(1000, start);
        let later = start + Duration::from_secs(60);
        assert_eq!(rate.take(1000, later), Some(later + Duration::from_secs(1) - BURST));
    }

    #[tokio::test]
    async fn whoever_waits_for_a_rate_goes_when_there_is_another() {
        let rate = Rate::new(Some(1));
        let at = rate.take(1 << 20).unwrap();
        let mut waiting = std::pin::pin!(rate.paid(at));
        assert!(waiting.as_mut().now_or_never().is_none());
        rate.set(None);
        waiting.await;
        rate.paid(at).await;
        assert_eq!(rate.take(1 << 20), None);
    }
}
