//! Against a real containerd: what the content store, leases, holds and the catalog really do.
//!
//! Each test starts a containerd of its own in a temporary directory: `containerd` and `ctr` from the PATH, or from the
//! directory that FLOTILLA_TEST_CONTAINERD names.

mod catalog;
mod content;
mod daemon;
mod holder;
mod holds;
mod image;
