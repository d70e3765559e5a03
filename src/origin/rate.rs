//! Bytes a second from all registries together.

use std::time::{Duration, Instant};

/// A leaky bucket that keeps one moment: when everything taken so far is paid for.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: u64,
    paid_until: Option<Instant>,
}

/// Unused time that counts: a tenth of a second, several chunks at any rate that carries images.
const BURST: Duration = Duration::from_millis(100);

impl Rate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_until: None }
    }

    /// Takes `bytes` that have arrived; the moment before which no more should be read.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = self.paid_until.map_or(earliest, |until| until.max(earliest));
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = start + cost;
        self.paid_until = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_run_keeps_to_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(1000);
        let mut now = start;
        for _ in 0..50 {
            now = now.max(rate.take(100, now));
        }
        let took = now - start;
        assert_eq!(took, Duration::from_secs(5) - BURST);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let start = Instant::now();
        let mut rate = Rate::new(1000);
        rate.take(1000, start);
        let later = start + Duration::from_secs(60);
        assert_eq!(rate.take(1000, later), later + Duration::from_secs(1) - BURST);
    }
}
