//! Snapshot records and the mounts that they mean.
//!
//! A snapshot is a record and a directory. The record says what containerd calls it, what it stands on
//! and whether it may still change; the directory holds the tree. This module knows only what is at
//! `fs`, never how it came there: containerd unpacks into it through the mounts of [`Snapshots::prepare`],
//! we build whole layers in a [`Staging`] directory and hand them to [`Snapshots::commit_tree`].
//!
//! ```text
//! <root>/                      0700
//!   lock                       held by the daemon that owns the root
//!   metadata.db (-wal, -shm)   the records: SQLite, WAL, synchronous=FULL
//!   snapshots/<id>/            0700, named by a record of the same id
//!     fs/                      0755, the tree; the upper directory while the snapshot is active
//!     work/                    0711, overlay's, only under an active snapshot
//!   staging/<id>/fs/           being built; nobody but its `Staging` knows it
//!   dead/<id>/                 has no record any more; `cleanup` deletes it
//! ```
//!
//! A directory moves only to the right and only by rename: `staging` to `snapshots` just before the one
//! transaction that makes the record, to `dead` after the one that removes it. So whatever instruction a
//! crash falls on, the next start sees one of two things that it can tell apart: a directory without a
//! record is rubbish and goes to `dead`; a record without a directory (a disk that was restored or lost a
//! write) is kept, named in the log, and refused as a parent. Ids are never used twice: SQLite's
//! AUTOINCREMENT remembers the highest that had a record, and a start counts the directories too.
//!
//! Every method is blocking and, but for the walks of [`Snapshots::usage`], [`Snapshots::commit`] and
//! [`Snapshots::cleanup`], a matter of milliseconds. Two connections, two locks, never both held: writers
//! queue behind one `fsync`, readers behind nobody who writes. No lock is held while a tree is walked,
//! synced or deleted. containerd calls `commit` and `update` inside its own database's write transaction,
//! so nothing in here ever calls containerd.

mod directories;
mod error;
mod filter;
mod info;
mod mounts;
mod records;
mod snapshots;
mod usage;

pub use directories::Staging;
pub use error::{OpenError, SnapshotError};
pub use filter::{Filter, FilterError};
pub use info::{Info, Kind, LABEL_SNAPSHOT_REF, Labels, Mount, Usage};
pub use records::{Cursor, Page};
pub use snapshots::{Durability, Settings, Snapshots};
