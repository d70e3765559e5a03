//! Makes a layer present in containerd: intercept, pull, unpack, commit, hold, adopt.

pub mod hold;
pub mod intercept;
