//! How many requests one host has open at once.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::endpoint::Endpoint;

/// Hosts remembered; beyond it the idle ones are forgotten.
const MAX_HOSTS: usize = 1024;

/// Bodies last as long as a layer; questions (HEAD, manifests) are short and must not wait behind them.
#[derive(Clone)]
struct Gate {
    bodies: Arc<Semaphore>,
    questions: Arc<Semaphore>,
}

/// The gates of all hosts.
pub(super) struct Gates {
    width: usize,
    known: Mutex<HashMap<String, Gate>>,
}

impl Gates {
    pub(super) fn new(width: usize) -> Self {
        Self { width: width.clamp(1, Semaphore::MAX_PERMITS), known: Mutex::default() }
    }

    /// Waits for a free place to read a blob from `endpoint`.
    pub(super) async fn body(&self, endpoint: &Endpoint) -> OwnedSemaphorePermit {
        acquire(self.gate(endpoint).bodies).await
    }

    /// Waits for a free place to ask `endpoint` something short.
    pub(super) async fn question(&self, endpoint: &Endpoint) -> OwnedSemaphorePermit {
        acquire(self.gate(endpoint).questions).await
    }

    fn gate(&self, endpoint: &Endpoint) -> Gate {
        let mut known = self.known.lock();
        if known.len() >= MAX_HOSTS {
            let width = self.width;
            let busy = |gate: &Gate| {
                gate.bodies.available_permits() < width || gate.questions.available_permits() < width
            };
            known.retain(|_, gate| busy(gate));
        }
        let gate = || Gate {
            bodies: Arc::new(Semaphore::new(self.width)),
            questions: Arc::new(Semaphore::new(self.width)),
        };
        known.entry(endpoint.authority()).or_insert_with(gate).clone()
    }
}

async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("nobody closes a gate")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::origin::endpoint::tests::book;

    #[tokio::test]
    async fn each_host_has_its_own_width() {
        let book = book(vec![]);
        let (a, b) = (book.endpoints("a.local").await.unwrap(), book.endpoints("b.local").await.unwrap());
        let gates = Gates::new(2);
        let first = gates.body(&a[0]).now_or_never().expect("there is a place");
        let _second = gates.body(&a[0]).now_or_never().expect("there are two");
        assert!(gates.body(&a[0]).now_or_never().is_none());
        assert!(gates.body(&b[0]).now_or_never().is_some(), "another host");
        assert!(gates.question(&a[0]).now_or_never().is_some(), "questions do not wait behind bodies");
        drop(first);
        assert!(gates.body(&a[0]).now_or_never().is_some());
    }
}
