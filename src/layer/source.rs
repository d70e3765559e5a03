//! Where a job's bytes come from: a pull, and another one when the store's copy has rotted.

use parking_lot::Mutex;

use super::Parts;
use crate::pull::{Pull, Want};

/// A layer whose blob rots so often while it is made is left to containerd: the disk is no good.
const AGAIN_MAX: u32 = 3;

/// The pull of a job, and how many there were before it.
pub(super) struct Source(Mutex<(Pull, u32)>);

impl Source {
    pub(super) fn start(parts: &Parts, want: Want) -> Self {
        Self(Mutex::new((parts.pulls.start(want), 0)))
    }

    pub(super) fn pull(&self) -> (Pull, u32) {
        self.0.lock().clone()
    }

    /// What was read of pull `number` failed. `true` if another one has taken its place, which brings the same bytes
    /// again: the store has the blob no more, since it has rotted.
    pub(super) fn is_another(&self, number: u32, parts: &Parts, want: impl FnOnce() -> Want) -> bool {
        let mut source = self.0.lock();
        if source.1 != number {
            return true;
        }
        let want = want();
        let is_lost = number < AGAIN_MAX && !parts.store.holds(&want.digest);
        if is_lost {
            tracing::warn!(layer = %want.digest, "rot in the store: fetched again");
            *source = (parts.pulls.start(want), number + 1);
        }
        is_lost
    }
}
