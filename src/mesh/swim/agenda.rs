//! What is due when.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::life::Life;

/// Who has slept for so long (SIGSTOP, a frozen virtual machine) judges nobody by it: everything waits for as
/// much longer. A busy node's timers are late by some tens of milliseconds.
const LATE_MAX: Duration = Duration::from_millis(500);

/// Something to do at its time.
#[derive(Debug)]
pub(super) enum Due {
    Foca(foca::Timer<Life>),
    /// This life refused a connection and has been suspected since; it is down unless it has refuted that.
    Confirm {
        life: Life,
        incarnation: u16,
    },
    /// To come back as another life.
    Renew,
    /// To take the name back from one who has been gone since.
    Inherit,
    /// To watch the next one.
    Watch,
    /// To compare views with somebody.
    Compare,
    /// To ask one who is down whether it is, and to forget who has been for long.
    Revive,
}

#[derive(Debug, Default)]
pub(super) struct Agenda {
    due: BTreeMap<(Instant, u64), Due>,
    count: u64,
}

impl Agenda {
    pub(super) fn add(&mut self, at: Instant, due: Due) {
        self.count += 1;
        self.due.insert((at, self.count), due);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn pop(&mut self, now: Instant) -> Option<Due> {
        self.next().filter(|at| *at <= now)?;
        self.due.pop_first().map(|(_, due)| due)
    }

    /// Puts everything off by as long as this node has slept.
    pub(super) fn wake(&mut self, now: Instant) {
        let late = self.next().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if late > LATE_MAX {
            self.due = std::mem::take(&mut self.due)
                .into_iter()
                .map(|((at, n), due)| ((at + late, n), due))
                .collect();
        }
    }
}
