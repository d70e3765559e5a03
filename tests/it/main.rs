//! Flotilla as its users meet it: one test binary, one file a part.

#![allow(clippy::unwrap_used, reason = "a story says what went wrong by panicking")]

mod architecture;
mod lab;
mod real_stock;
mod systemd;
