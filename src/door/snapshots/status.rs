//! Which status code containerd is to see.

use std::error::Error;

use tonic::{Code, Status};

use crate::snapshot::SnapshotError;

/// containerd acts on the first four codes; with any other the pull or the container fails with our text.
pub(super) fn of(error: SnapshotError) -> Status {
    let code = code(&error);
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    if matches!(code, Code::Internal | Code::ResourceExhausted) {
        tracing::error!(error = text, "a call on the snapshots failed");
    } else {
        tracing::debug!(error = text, "refused a call on the snapshots");
    }
    Status::new(code, text)
}

fn code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::NotFound { .. } | SnapshotError::ParentNotFound { .. } => Code::NotFound,
        SnapshotError::Exists { .. } => Code::AlreadyExists,
        SnapshotError::HasChildren { .. }
        | SnapshotError::NotActive { .. }
        | SnapshotError::NotMountable { .. }
        | SnapshotError::DirectoryLost { .. } => Code::FailedPrecondition,
        SnapshotError::ParentNotCommitted { .. }
        | SnapshotError::ParentFixed { .. }
        | SnapshotError::Unnamed
        | SnapshotError::Immutable { .. } => Code::InvalidArgument,
        SnapshotError::Disk { .. } | SnapshotError::Records { .. } if error.disk_is_full() => {
            Code::ResourceExhausted
        }
        SnapshotError::Disk { .. } | SnapshotError::Records { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_and_the_cause_is_in_the_text() {
        let full = |kind: io::ErrorKind| SnapshotError::Disk {
            action: "making a snapshot directory under",
            path: "/root".into(),
            source: kind.into(),
        };
        let status = of(full(io::ErrorKind::StorageFull));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "making a snapshot directory under /root: no storage space");
        assert_eq!(of(full(io::ErrorKind::PermissionDenied)).code(), Code::Internal);
    }
}
