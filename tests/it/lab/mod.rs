//! The laboratory: real registries, containerds, networks and the built daemon, for tests and the demo.
//!
//! ```text
//! /tmp/fl<process id>x<counter>/    one lab; short, because unix sockets' paths are
//!   blobs/                          the registry's folder, filled by `image::Images`
//!   registry/                       its settings and log
//!   certs.d/<host>/hosts.toml       how containerd reaches it
//!   machine/                        a throw-away machine's, where a story boots one
//!   <node>/containerd/              config.toml, c.sock, containerd.log, root/, state/
//!   <node>/flotilla/                config.toml, flotilla.log, data/, run/
//! ```
//! All that is started carries the lab's folder in its environment, so that `sweep` finds it again even
//! when the test was killed. A lab cleans up when it is dropped, and removes what dead labs have left.
//!
//! `xtask` compiles the same files for its demo: everything but `image`, `machine`, `samples` and `story` needs only `std`.

#![allow(dead_code, reason = "each story uses a part of the lab")]

pub(crate) mod certs;
pub(crate) mod containerd;
pub(crate) mod cri;
mod failure;
pub(crate) mod flotilla;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod net;
pub(crate) mod node;
mod place;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod samples;
pub(crate) mod story;
pub(crate) mod sweep;

pub(crate) use failure::{Failure, Result};
pub(crate) use place::{dockerd, lab_of, tool};
pub(crate) use story::Lab;
