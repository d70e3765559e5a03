//! The status page: one file, no library, the same JSON that the command line reads.

/// Reads `/v1/status` every two seconds.
pub(super) const STATUS: &str = include_str!("status.html");
