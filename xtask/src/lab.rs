//! The laboratory of `tests/it/lab`, compiled in: one implementation for tests, demo and benchmarks.

#![allow(dead_code, reason = "the tests use the rest")]

#[path = "../../tests/it/lab/certs.rs"]
pub(crate) mod certs;
#[path = "../../tests/it/lab/containerd.rs"]
pub(crate) mod containerd;
#[path = "../../tests/it/lab/cri.rs"]
pub(crate) mod cri;
#[path = "../../tests/it/lab/failure.rs"]
mod failure;
#[path = "../../tests/it/lab/flotilla.rs"]
pub(crate) mod flotilla;
#[path = "../../tests/it/lab/net.rs"]
pub(crate) mod net;
#[path = "../../tests/it/lab/node.rs"]
pub(crate) mod node;
#[path = "../../tests/it/lab/place.rs"]
mod place;
#[path = "../../tests/it/lab/process.rs"]
pub(crate) mod process;
#[path = "../../tests/it/lab/registry.rs"]
pub(crate) mod registry;
#[path = "../../tests/it/lab/sweep.rs"]
pub(crate) mod sweep;

pub(crate) use failure::{Failure, Result};
pub(crate) use place::{cache, dockerd, is_of, lab_of, new_lab};
