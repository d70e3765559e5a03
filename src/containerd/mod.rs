//! What Flotilla asks of containerd: content, images, leases, events, introspection.
//!
//! ```text
//! Client ── one lazily connected channel over containerd's unix socket; reconnects by itself
//!   ├── version, namespaces, content_root, events       (no namespace needed)
//!   ├── pull_image       through its CRI, as kubelet does
//!   └── Namespace ── every request carries `containerd-namespace`
//!         ├── info, list, read, status, abort, set_labels
//!         ├── ingest   a blob in, under a private ref ─┐ both speak the Write protocol (write.rs):
//!         ├── hold     containerd's own ref, locked   ─┘ an open stream is the lock on its ref
//!         └── create_lease, delete_lease, images
//! ```
//!
//! Nothing here may be called from a snapshotter's Commit, Update, Remove, Stat or List: containerd
//! makes those calls inside its own write transaction, and most of these take that transaction.

mod client;
mod content;
mod cri;
mod error;
mod events;
mod held;
mod images;
mod ingest;
mod leases;
mod version;
mod write;

pub use client::{Client, Namespace};
pub use content::{ContentInfo, IngestStatus, ReadError};
pub use error::CallError;
pub use events::{EVENT_FILTERS, Event};
pub use held::{HeldRef, Hold, HoldOutcome};
pub use images::Image;
pub use ingest::{Ingest, IngestError, Ingested};
pub use version::{Version, VersionError};

/// Label with the digest of a layer's tar. containerd sets it only on layers that it applied itself.
pub const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// Prefix of the labels by which containerd's own garbage collection knows what a blob refers to:
/// `containerd.io/gc.ref.content.<what>` = digest, where `<what>` is `config`, `l.<n>` for a layer, `m.<n>` for a
/// manifest of an index (containerd `images/handlers.go`).
pub const REFERENCE_LABEL_PREFIX: &str = "containerd.io/gc.ref.content.";

/// Prefix of the labels that say which repositories of a host have a blob:
/// `containerd.io/distribution.source.<host>` = `<repository>[,<repository>…]`. The host has lost its
/// port (containerd `remotes/docker/handler.go`).
pub const SOURCE_LABEL_PREFIX: &str = "containerd.io/distribution.source.";
