//! How long the Prepares of one pull of one image have waited together.
//!
//! A Prepare that blocks keeps containerd's garbage collection waiting, and a waiting collection keeps every
//! container of the snapshotter from being created, so what counts is the time during which at least one of them
//! waits, not the sum of those that wait side by side.

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

impl Budget {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, spent: Duration::ZERO, waiting: 0, since: None }
    }

    /// A Prepare begins to wait; answers until when it may.
    pub(super) fn enter(&mut self, now: Instant) -> Instant {
        self.waiting += 1;
        let since = *self.since.get_or_insert(now);
        since + self.limit.saturating_sub(self.spent)
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
        self.spent = self.limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_side_by_side_count_once_and_waits_in_a_row_add_up() {
        let start = Instant::now();
        let mut budget = Budget::new(10 * SECOND);
        assert_eq!(budget.enter(start), start + 10 * SECOND);
        assert_eq!(budget.enter(start + 2 * SECOND), start + 10 * SECOND);
        budget.leave(start + 3 * SECOND);
        assert!(budget.is_waiting());
        budget.leave(start + 4 * SECOND);
        let deadline = budget.enter(start + 60 * SECOND);
        assert_eq!(deadline, start + 66 * SECOND, "time between Prepares costs nothing");
    }

    #[test]
    fn after_a_hand_over_nobody_waits() {
        let start = Instant::now();
        let mut budget = Budget::new(10 * SECOND);
        budget.exhaust();
        assert_eq!(budget.enter(start), start);
    }
}
