//! How a single call to containerd fails.

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{Code, Status};

/// Why one call to containerd did not succeed. Each variant says what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(
        "containerd cannot be reached at {} to {asked}: is it running, and is `address` in [containerd] right? {why}",
        address.display()
    )]
    Absent { address: PathBuf, asked: String, why: String },
    #[error("containerd at {} did not answer within {} s, asked to {asked}", address.display(), limit.as_secs())]
    Slow { address: PathBuf, asked: String, limit: Duration },
    #[error("containerd refused to {asked}")]
    Refused { asked: String, source: Box<Status> },
    #[error("containerd was asked to {asked} and answered with {answer}, which makes no sense")]
    Answer { asked: String, answer: String },
    #[error("{what} {name:?} cannot stand in a request to containerd")]
    Name { what: &'static str, name: String },
}

impl CallError {
    /// Sorts a status into "nobody there" and "somebody said no".
    pub(super) fn new(address: &Path, asked: &str, status: Status) -> Self {
        let source = Box::new(status);
        let asked = asked.to_owned();
        // Only a status that tonic made from a broken connection has a cause; containerd's have none. Each cause repeats
        // those below it, so the last says it all.
        let last = std::iter::successors(source.source(), |&cause| cause.source()).last();
        if let Some(why) = last.map(ToString::to_string) {
            return Self::Absent { address: address.to_owned(), asked, why };
        }
        Self::Refused { asked, source }
    }

    /// containerd's own verdict, if it gave one.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { source, .. } => Some(source.code()),
            Self::Absent { .. } | Self::Slow { .. } | Self::Answer { .. } | Self::Name { .. } => None,
        }
    }

    /// containerd's own words, if it said any.
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Refused { source, .. } => source.message(),
            Self::Absent { .. } | Self::Slow { .. } | Self::Answer { .. } | Self::Name { .. } => "",
        }
    }

    /// Nobody answers at containerd's socket.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }

    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "containerd_absent",
            Self::Slow { .. } => "containerd_slow",
            Self::Refused { .. } => "containerd_refused",
            Self::Answer { .. } => "containerd_answer",
            Self::Name { .. } => "name",
        }
    }
}
