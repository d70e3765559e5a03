//! Why a snapshot could not be had. The door turns these into status codes.

use std::{io, path::PathBuf};

/// Why the snapshots under a root cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{action} {}", path.display())]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
    #[error("snapshots in {} are in use by another daemon: stop it or give this one another snapshot_root", path.display())]
    InUse { path: PathBuf },
    #[error(
        "the file system of {} does not report the type of directory entries (d_type), which overlay needs: \
         put snapshot_root on another, or make xfs anew with ftype=1",
        path.display()
    )]
    NoDirectoryTypes { path: PathBuf },
    #[error("path {} is not UTF-8 or contains `:` or `,`, which an overlay mount cannot express", path.display())]
    Unmountable { path: PathBuf },
    #[error("snapshot records {} were written by a newer Flotilla (form {found}, this one reads up to {known})", path.display())]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("snapshot records {} cannot be read", path.display())]
    Records { path: PathBuf, source: rusqlite::Error },
}

/// Why a call on a snapshot failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot `{name}` does not exist")]
    NotFound { name: String },
    #[error("parent `{parent}` of snapshot `{name}` does not exist")]
    ParentNotFound { name: String, parent: String },
    #[error("parent `{parent}` of snapshot `{name}` is not committed")]
    ParentNotCommitted { name: String, parent: String },
    #[error("snapshot `{name}` stands on another parent than `{parent}`")]
    ParentFixed { name: String, parent: String },
    #[error("snapshot `{name}` already exists")]
    Exists { name: String },
    #[error("a snapshot needs a name")]
    Unnamed,
    #[error("cannot commit snapshot `{name}`: it is not active")]
    NotActive { name: String },
    #[error("cannot mount snapshot `{name}`: it is committed")]
    NotMountable { name: String },
    #[error("cannot remove snapshot `{name}`: another snapshot stands on it")]
    HasChildren { name: String },
    #[error("cannot update `{path}` of snapshot `{name}`: only labels can change")]
    Immutable { name: String, path: String },
    #[error("snapshot `{name}` has lost its directory {}: remove the image and pull it again", path.display())]
    DirectoryLost { name: String, path: PathBuf },
    #[error("{action} {}", path.display())]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{action} in the snapshot records")]
    Records { action: &'static str, source: rusqlite::Error },
}

impl SnapshotError {
    /// Whether room on the disk was all that was missing.
    #[must_use]
    pub fn disk_is_full(&self) -> bool {
        if let Self::Records { source, .. } = self {
            return source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        }
        matches!(self, Self::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }

    /// Wraps what the disk said about `path`.
    pub(super) fn disk(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { action, path: path.to_owned(), source }
    }

    /// Wraps what SQLite said.
    pub(super) fn records(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Records { action, source }
    }
}
