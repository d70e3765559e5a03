//! Flotilla as its users meet it: one test binary, one file a part.

mod architecture;
mod containerd;
mod lab;
mod origin;
mod real_stock;
mod registry;
mod snapshots;
mod tree;
mod unpack_compare;
mod unpack_containerd;
mod unpack_layers;
