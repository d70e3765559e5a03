//! Flotilla pulls container images through the nodes of a cluster instead of through the registry.
//!
//! A module imports only modules of groups to its left, and `tests/it/architecture.rs` checks it:
//! `oci` < `piece wire` < `identity` < `store origin mesh containerd snapshot unpack` < `swarm` < `pull` <
//! `layer preheat` < `door` < `daemon` < `cli`. ARCHITECTURE.md says what each of them is for.

pub mod oci;
pub mod piece;
pub mod wire;

pub mod identity;

pub mod containerd;
pub mod mesh;
pub mod origin;
pub mod snapshot;
pub mod store;
pub mod unpack;

pub mod swarm;

pub mod pull;

pub mod layer;
pub mod preheat;

pub mod door;

pub mod daemon;

pub mod cli;
