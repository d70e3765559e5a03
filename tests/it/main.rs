//! Flotilla as its users meet it: one test binary, one file a part.

#![allow(clippy::unwrap_used, reason = "a story says what went wrong by panicking")]

mod architecture;
mod containerd;
mod lab;
mod liar;
mod mirror;
mod origin;
mod preheat;
mod rates;
mod real_bad;
mod real_by_mirror;
mod real_clients;
mod real_compare;
mod real_conformance;
mod real_contents;
mod real_cri;
mod real_handover;
mod real_holdings;
mod real_image;
mod real_install;
mod real_kubelet;
mod real_layers;
mod real_lies;
mod real_mesh;
mod real_mirror;
mod real_mirror_mesh;
mod real_origin;
mod real_peers;
mod real_preheat;
mod real_pull;
mod real_restart;
mod real_stock;
mod real_strangers;
mod real_systemd;
mod registry;
mod snapshots;
mod systemd;
mod tree;
mod unpack_compare;
mod unpack_containerd;
mod unpack_layers;
