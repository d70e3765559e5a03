//! The snapshotter as containerd sees it: over its socket, with real mounts, alone and behind a real
//! containerd.

#![expect(clippy::unwrap_used, reason = "these are tests: clippy knows only functions with #[test] as such")]

mod containerd;
mod crash;
mod disks;
mod edges;
mod mounting;
mod plugin;
mod suite;
mod tree;
