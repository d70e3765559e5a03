//! Against a real containerd: what the content store, leases, holds and the catalog really do.
//!
//! Each test starts a containerd of its own in a temporary directory: from the folder that
//! FLOTILLA_TEST_CONTAINERD names, or the oldest that `cargo xtask setup` got.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which say what they skip")]

mod catalog;
mod content;
mod daemon;
mod holder;
mod holds;
mod image;
