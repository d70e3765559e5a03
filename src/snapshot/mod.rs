//! Snapshot records and the mounts that they mean.
