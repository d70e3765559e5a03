//! Wires the modules from the settings, runs them, drains them.
