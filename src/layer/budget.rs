//! How long the Prepares of one pull of one image have waited together.
//!
//! A Prepare that blocks keeps containerd's garbage collection waiting, and a waiting collection keeps every
//! container of the snapshotter from being created, so what counts is the time during which at least one of them
//! waits, not the sum of those that wait side by side.
//!
//! A layer that is handed over is unpacked by containerd once all its bytes are here, and what was built of it is
//! thrown away. So a layer that will be here soon is waited for beyond the budget: half as long again for all of
//! them together.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Budget {
    limit: Duration,
    /// Time used up by waits that have ended.
    spent: Duration,
    waiting: u32,
    /// When the first of those that wait now began.
    since: Option<Instant>,
}

/// Until when a Prepare may wait, and until when for a layer that is here by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    pub(super) any: Instant,
    pub(super) soon: Instant,
}

impl Budget {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, spent: Duration::ZERO, waiting: 0, since: None }
    }

    /// A Prepare begins to wait; answers until when it may.
    pub(super) fn enter(&mut self, now: Instant) -> Deadline {
        self.waiting += 1;
        let since = *self.since.get_or_insert(now);
        let until = |limit: Duration| since + limit.saturating_sub(self.spent);
        Deadline { any: until(self.limit), soon: until(self.limit_soon()) }
    }

    fn limit_soon(&self) -> Duration {
        self.limit * 3 / 2
    }

    /// A Prepare has ended its wait.
    pub(super) fn leave(&mut self, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0
            && let Some(since) = self.since.take()
        {
            self.spent += now.saturating_duration_since(since);
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Uses up what is left: the layers have been handed over.
    pub(super) fn exhaust(&mut self) {
        self.spent = self.limit_soon();
    }
}

/// Whether so many bytes come in the time that is left, if they come as `came` bytes did in their time.
pub(super) fn is_enough(left: Duration, missing: u64, (came, took): (u64, Duration)) -> bool {
    !left.is_zero() && came as f64 * left.as_secs_f64() >= missing as f64 * took.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_soon_is_told_by_what_came() {
        let came = (100, 10 * SECOND);
        assert!(is_enough(5 * SECOND, 50, came) && !is_enough(5 * SECOND, 51, came));
        assert!(!is_enough(5 * SECOND, 1, (0, 10 * SECOND)), "nothing comes");
        assert!(is_enough(5 * SECOND, 0, came), "only the tree is missing");
        assert!(!is_enough(Duration::ZERO, 0, came), "handed over already");
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_side_by_side_count_once_and_waits_in_a_row_add_up() {
        let start = Instant::now();
        let mut budget = Budget::new(10 * SECOND);
        let both = |any: Duration, soon: Duration| Deadline { any: start + any, soon: start + soon };
        assert_eq!(budget.enter(start), both(10 * SECOND, 15 * SECOND));
        assert_eq!(budget.enter(start + 2 * SECOND), both(10 * SECOND, 15 * SECOND));
        budget.leave(start + 3 * SECOND);
        assert!(budget.is_waiting());
        budget.leave(start + 4 * SECOND);
        let deadline = budget.enter(start + 60 * SECOND);
        assert_eq!(deadline, both(66 * SECOND, 71 * SECOND), "time between Prepares costs nothing");
    }

    #[test]
    fn after_a_hand_over_nobody_waits() {
        let start = Instant::now();
        let mut budget = Budget::new(10 * SECOND);
        budget.exhaust();
        assert_eq!(budget.enter(start), Deadline { any: start, soon: start });
    }
}
