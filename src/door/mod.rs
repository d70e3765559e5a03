//! Ways in for somebody else's client. Thin: a door turns requests into calls and our errors into status codes.

pub mod admin;
pub mod cri;
pub mod peer;
pub mod registry;
pub mod snapshots;
