//! Flotilla against real parts.

mod containerd;
