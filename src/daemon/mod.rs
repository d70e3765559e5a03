//! Wires the modules from the settings, runs them, drains them.

mod build;
mod doors;
mod gate;
mod gauges;
mod modules;
mod rates;
mod report;
mod run;
mod schema;
mod settings;
mod sockets;
mod upkeep;

pub use build::check;
pub use run::{RunError, run};
pub use settings::{DEFAULT_FILE, Settings, SettingsError};
