//! Who sends which piece to whom.
//!
//! ```text
//!   pull ── Exchange ◀── events ── Swarm (in Trackers, on the digest's HRW-first member) ── Exchange ── pull
//!               └──────── reports ──────▶ ▲
//! ```
//! [`tracker::Swarm`] and [`exchange::Exchange`] are decisions without I/O: events in, decisions out, time as
//! an argument. [`Trackers`] is the shell around the swarms that this node tracks.

pub mod exchange;
pub mod message;
mod poll;
pub mod tracker;
mod trackers;
mod turns;

pub use self::{
    poll::HOPS_MAX,
    trackers::{Seat, TrackError, Trackers},
    turns::{NoPlace, Place, Turn, TurnMetrics, Turns, Word},
};

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "seeds and figures of a simulation")]
mod sim;
#[cfg(test)]
mod tests;
