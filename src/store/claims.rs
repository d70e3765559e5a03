//! One at a time for each digest: whoever changes a blob's place in the tree claims its digest first.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use crate::oci::Digest;

#[derive(Default)]
pub(super) struct Claims {
    held: Mutex<HashSet<Digest>>,
    released: Condvar,
}

/// The right to change the place of one digest, until it is dropped.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    digest: Digest,
}

impl Claims {
    /// Waits until nobody else has the digest.
    pub(super) fn claim(&self, digest: &Digest) -> Claim<'_> {
        let mut held = self.held.lock();
        while !held.insert(digest.clone()) {
            self.released.wait(&mut held);
        }
        Claim { claims: self, digest: digest.clone() }
    }

    /// `None` if somebody has it. For those who hold another claim already: they must not wait.
    pub(super) fn try_claim(&self, digest: &Digest) -> Option<Claim<'_>> {
        let inserted = self.held.lock().insert(digest.clone());
        inserted.then(|| Claim { claims: self, digest: digest.clone() })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.held.lock().remove(&self.digest);
        self.claims.released.notify_all();
    }
}
