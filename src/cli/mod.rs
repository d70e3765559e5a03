//! One file a subcommand.

pub mod certs;
pub mod install;
