//! Wires the modules from the settings, runs them, drains them.

mod modules;
mod report;
mod run;
mod schema;
mod settings;
mod sockets;

pub use run::{RunError, run};
pub use settings::{DEFAULT_FILE, Settings, SettingsError};
