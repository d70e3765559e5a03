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
