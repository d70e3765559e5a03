//! A limit in bytes a second that many tasks share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes may run ahead of the rate by this much time, so that a timer's granularity (1 ms) does not
/// lower the rate and a small answer does not wait.
const BURST: Duration = Duration::from_millis(50);

/// A shared token bucket; clones share it. Whoever takes first goes first, whatever the amounts.
#[derive(Clone)]
pub struct Rate(Arc<Shared>);

struct Shared {
    bucket: Mutex<Bucket>,
    changed: Notify,
}

impl Rate {
    /// `None`, or 0, is no limit.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let bucket = Mutex::new(Bucket::new(bytes_per_second));
        Self(Arc::new(Shared { bucket, changed: Notify::new() }))
    }

    /// Another rate from now on. Whoever waits for the old one goes at once.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let new = Bucket::new(bytes_per_second);
        let mut bucket = self.0.bucket.lock();
        if bucket.bytes_per_second != new.bytes_per_second {
            *bucket = new;
            self.0.changed.notify_waiters();
        }
    }

    /// Returns once `bytes` may flow. If the caller is dropped while it waits, its share is spent.
    pub async fn take(&self, bytes: u64) {
        // Listens before it looks: no change is missed in between.
        let changed = self.0.changed.notified();
        let wait = self.0.bucket.lock().take(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }
}

/// The decision: when everything taken so far has flowed, at the rate.
struct Bucket {
    bytes_per_second: Option<u64>,
    flowed_at: Option<Instant>,
}

impl Bucket {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), flowed_at: None }
    }

    /// Takes `bytes` and says how long to wait for them.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let begin = self.flowed_at.map_or(now, |flowed_at| flowed_at.max(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        // 584 years: nobody waits for the difference.
        let flowing = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let Some(end) = begin.checked_add(flowing) else { return Duration::MAX };
        self.flowed_at = Some(end);
        end.saturating_duration_since(now).saturating_sub(BURST)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn takers_share_one_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1_000_000));
        assert_eq!(bucket.take(50_000, start), Duration::ZERO);
        assert_eq!(bucket.take(100_000, start), Duration::from_millis(100));
        assert_eq!(bucket.take(100_000, start), Duration::from_millis(200));
        let later = start + Duration::from_millis(200);
        assert_eq!(bucket.take(100_000, later), Duration::from_millis(100));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1_000_000));
        bucket.take(10, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(1_000_000, later), Duration::from_millis(950));
    }

    #[test]
    fn a_huge_take_does_not_overflow() {
        let mut bucket = Bucket::new(Some(1));
        assert!(bucket.take(u64::MAX, Instant::now()) > Duration::from_secs(1 << 30));
        assert!(bucket.take(u64::MAX, Instant::now()) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn no_limit_never_waits() {
        for limit in [None, Some(0)] {
            assert!(Rate::new(limit).take(u64::MAX).now_or_never().is_some());
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_rate_goes_when_there_is_another() {
        let rate = Rate::new(Some(1));
        let mut waiting = std::pin::pin!(rate.take(u64::MAX));
        assert!(waiting.as_mut().now_or_never().is_none());
        rate.set(Some(1));
        assert!(waiting.as_mut().now_or_never().is_none(), "that is no other rate");
        rate.set(None);
        waiting.await;
        assert!(rate.take(u64::MAX).now_or_never().is_some());
        rate.set(Some(1));
        assert!(rate.take(u64::MAX).now_or_never().is_none());
    }
}
