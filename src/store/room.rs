//! Room for what is to come, and the sweep that keeps the store within its limits.

use std::{
    sync::{Arc, Weak},
    time::SystemTime,
};

use crate::{oci::Digest, piece::PieceLayout};

use super::{
    ArriveError, Shared, Why,
    index::{Index, Partial, Progress},
    policy::{self, Candidate, Kind, Standing},
};

/// How often room is made before an arrival is refused. Others take room meanwhile; whoever loses it this often is
/// on a disk that is too small for the crowd.
const ROUNDS: usize = 4;

/// What a sweep removed.
#[derive(Debug, Default)]
pub struct Swept {
    pub removed: Vec<Removed>,
}

#[derive(Debug)]
pub struct Removed {
    pub digest: Digest,
    /// Bytes that came free; nothing where containerd still links the file.
    pub freed: u64,
    pub why: Why,
    /// It had only begun to arrive.
    pub partial: bool,
}

/// What an arrival will take.
#[derive(Clone, Copy)]
struct Need {
    /// Against the quota.
    charged: u64,
    /// On the file system.
    written: u64,
}

impl Shared {
    /// Reserves room for a blob of which `missing` bytes are still to come, and for containerd's copy of it, which
    /// stands beside ours until one link takes its place. Until its files are open the arrival counts as in use. The
    /// caller has claimed the digest.
    pub(super) fn reserve(
        &self,
        digest: &Digest,
        layout: PieceLayout,
        missing: u64,
    ) -> Result<Arc<Progress>, ArriveError> {
        let len = layout.blob_len();
        let progress = Arc::new(Progress::new(missing, self.host.now()));
        let partial = Partial { len, progress: Arc::clone(&progress), inner: Weak::new(), opening: true };
        let need = Need { charged: len, written: missing.saturating_add(len) };
        self.make_room(digest, need, |index| {
            index.arriving.insert(digest.clone(), partial.clone());
        })?;
        Ok(progress)
    }

    /// Lets go what was used longest ago until `need` fits, then does `take` in the same moment.
    fn make_room(&self, digest: &Digest, need: Need, take: impl Fn(&mut Index)) -> Result<(), ArriveError> {
        let space = self.host.space(self.tree.dir());
        let mut free = space.map_err(|source| ArriveError::Io { digest: digest.clone(), source })?.free;
        let mut looked = false;
        let mut rounds = 0;
        loop {
            let (shortage, plan) = {
                let mut index = self.index.lock();
                let Some(shortage) = self.shortage(&index, digest, need, free) else {
                    take(&mut index);
                    return Ok(());
                };
                let others = index.candidates().into_iter().filter(|other| &other.digest != digest);
                (shortage, policy::make_room(others.collect(), shortage.bytes()))
            };
            if !looked {
                // What containerd has dropped since the last sweep can go, too.
                self.look_at_links();
                looked = true;
                continue;
            }
            match plan {
                Ok(victims) if rounds < ROUNDS => {
                    rounds += 1;
                    for victim in &victims {
                        let Some(freed) = self.evict(victim) else { continue };
                        tracing::info!(digest = %victim.digest, freed, "let go to make room for {digest}");
                        free = free.saturating_add(freed);
                    }
                }
                Ok(_) => return Err(shortage.refusal(0)),
                Err(evictable) => return Err(shortage.refusal(evictable)),
            }
        }
    }

    /// What is lacking for `need`, against the quota or on the file system, whichever lacks more.
    fn shortage(&self, index: &Index, digest: &Digest, need: Need, free: u64) -> Option<Shortage> {
        let own = index.arriving.get(digest).map_or(0, Partial::charged);
        let charged = index.charged() - own;
        let quota = Shortage { needed: need.charged, available: self.limits.quota.saturating_sub(charged) };
        let taken = index.outstanding().saturating_add(self.limits.floor);
        let disk = Shortage { needed: need.written, available: free.saturating_sub(taken) };
        let worse = if quota.bytes() > disk.bytes() { quota } else { disk };
        (worse.bytes() > 0).then_some(worse)
    }

    /// Keeps the store within its limits. Costs a `stat` for each blob: 40 ms for 10,000 of them.
    pub(super) fn sweep(&self, now: SystemTime) -> Swept {
        self.look_at_links();
        let free = match self.host.space(self.tree.dir()) {
            Ok(space) => space.free,
            Err(error) => {
                tracing::warn!(dir = %self.tree.dir().display(), %error, "cannot see how much room is left: nothing is removed for keep_free");
                u64::MAX
            }
        };
        let going = {
            let index = self.index.lock();
            let standing = Standing {
                now,
                charged: index.charged(),
                quota: self.limits.quota,
                free,
                keep_free: self.limits.keep_free,
                expire_after: self.limits.expire_after,
            };
            policy::sweep(index.candidates(), standing)
        };
        let gone = going.into_iter().filter_map(|(candidate, why)| {
            let freed = self.evict(&candidate)?;
            let Candidate { digest, kind, .. } = candidate;
            Some(Removed { digest, freed, why, partial: kind == Kind::Partial })
        });
        Swept { removed: gone.collect() }
    }
}

/// Bytes asked for, and bytes that could be had without letting anything go.
#[derive(Clone, Copy)]
struct Shortage {
    needed: u64,
    available: u64,
}

impl Shortage {
    fn bytes(self) -> u64 {
        self.needed.saturating_sub(self.available)
    }

    fn refusal(self, evictable: u64) -> ArriveError {
        ArriveError::NoSpace { needed: self.needed, available: self.available.saturating_add(evictable) }
    }
}
