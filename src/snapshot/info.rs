//! What a record says.

use std::{collections::HashMap, fmt, time::SystemTime};

/// Labels of a snapshot. containerd does not keep a label whose value is empty, and neither do we.
pub type Labels = HashMap<String, String>;

/// The chain ID that a snapshot was asked for or made for.
pub const LABEL_SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// What may be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Mounted to be looked at.
    View,
    /// Mounted to be changed, then committed.
    Active,
    /// Finished: never mounted itself, the parent of others.
    Committed,
}

impl Kind {
    /// containerd's word for it, in filters and in the records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::View, Self::Active, Self::Committed].into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A snapshot as containerd sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The key of a view or an active snapshot, the name of a committed one: one name space.
    pub name: String,
    /// The parent's name, empty at the bottom.
    pub parent: String,
    pub kind: Kind,
    pub created: SystemTime,
    pub updated: SystemTime,
    pub labels: Labels,
}

/// What a snapshot's own directory takes up, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated, in bytes: `st_blocks * 512`.
    pub size_bytes: u64,
    pub inodes: u64,
}

/// A mount for containerd to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    pub source: String,
    pub options: Vec<String>,
}
