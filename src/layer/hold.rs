//! Holds of containerd content-store refs.
