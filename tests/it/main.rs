//! Tests against real parts.

mod tree;
mod unpack_compare;
mod unpack_containerd;
mod unpack_layers;
