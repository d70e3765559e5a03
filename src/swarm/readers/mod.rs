//! How many leases on one registry host are out at a time, for all digests of the whole cluster.
//!
//! ```text
//!   Swarm: wants 6, has 2 ─┐                        ┌─ Budget of another member
//!   Swarm: wants 6, has 0 ─┴▶ Budget ── Ask ──▶ Keeper ◀── Ask ─┘
//!                      allow ◀──┘ ◀── Share ──┘
//! ```
//! The digests of one image have different trackers, and each could be content with six readers: forty layers would
//! be 240 connections. So the trackers share a limit for each host. Its [`Keeper`] is the member that is first in
//! the rank of the host's name; every member that tracks something of the host asks it for a share, five times a
//! second and when its wishes change, and its [`Budget`] divides that among its swarms. A 429 or `Retry-After` that one
//! reader meets goes the same way, and quietens all of them.
//!
//! The first answer comes while the members are asked what they hold. A share lasts two seconds, and when the keeper dies
//! the next in rank hears from everybody what is out and for how long the host wants quiet. Two keepers for a while cost
//! at most twice the limit for as long; without any, each member has one reader.

mod budget;
mod keeper;

use std::time::Duration;

pub use self::{budget::Budget, keeper::Keeper};
use super::message::{MessageError, RETRY_AFTER_MAX, at_most};
use crate::wire::mesh as wire;

/// A registry's host, without its port: containerd's labels have lost it.
pub type Host = String;

/// A name in DNS.
pub(super) const HOST_LEN_MAX: usize = 255;
/// More than any limit that makes sense, so that a sum of them stays small.
const READERS_MAX: u32 = 1024;
/// When no keeper answers: enough to go on with.
const READERS_ALONE: u32 = 1;
/// How often a share is asked for again: so long what one member has too much is not another's, and who comes when all are
/// out waits twice as long at most. With half a second 40 trackers that shared a dozen needed 2.5 x what a dozen readers
/// need that never rest.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a share lasts without the keeper: a few asks may be lost.
const SHARE_LIFE: Duration = Duration::from_secs(2);

/// What a member's swarms want of a host, all together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub host: Host,
    pub wants: u32,
    /// Leases that are out.
    pub has: u32,
    /// For how long the host wants to be left alone, as far as this member knows.
    pub quiet: Duration,
    /// It has said so to a reader since the last time that this was asked.
    pub throttled: bool,
}

/// What a keeper grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub readers: u32,
    pub quiet: Duration,
}

/// Divides `limit` among those who want so many each, one by one; where it does not come out even, the first of them
/// have more.
fn divide(limit: u32, wants: &[u32]) -> Vec<u32> {
    let mut shares = vec![0; wants.len()];
    let mut left = limit;
    while left > 0 {
        let hungry = shares.iter_mut().zip(wants).filter(|(share, wants)| **share < **wants);
        let served = hungry.take(left as usize).map(|(share, _)| *share += 1).count();
        if served == 0 {
            break;
        }
        left -= u32::try_from(served).expect("at most what is left");
    }
    shares
}

fn millis(time: Duration) -> u32 {
    // A quiet that is nearly over is one still.
    u32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}

fn quiet(millis: u32) -> Duration {
    Duration::from_millis(millis.into()).min(RETRY_AFTER_MAX)
}

impl Ask {
    /// # Errors
    /// A field is missing or over its limit.
    pub fn from_wire(request: wire::ReadersRequest) -> Result<Self, MessageError> {
        if request.host.is_empty() {
            return Err(MessageError::Missing { field: "host" });
        }
        at_most("host", request.host.len() as u64, HOST_LEN_MAX as u64)?;
        at_most("wants", request.wants.into(), READERS_MAX.into())?;
        at_most("has", request.has.into(), READERS_MAX.into())?;
        Ok(Self {
            host: request.host,
            wants: request.wants,
            has: request.has,
            quiet: quiet(request.quiet_ms),
            throttled: request.throttled,
        })
    }

    #[must_use]
    pub fn to_wire(&self) -> wire::ReadersRequest {
        wire::ReadersRequest {
            host: self.host.clone(),
            wants: self.wants,
            has: self.has,
            quiet_ms: millis(self.quiet),
            throttled: self.throttled,
        }
    }
}

impl Share {
    #[must_use]
    pub fn from_wire(response: wire::ReadersResponse) -> Self {
        Self { readers: response.readers.min(READERS_MAX), quiet: quiet(response.quiet_ms) }
    }

    #[must_use]
    pub fn to_wire(self) -> wire::ReadersResponse {
        wire::ReadersResponse { readers: self.readers, quiet_ms: millis(self.quiet) }
    }
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "figures of a simulation")]
mod tests;
