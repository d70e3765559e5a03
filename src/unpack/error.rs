//! What can end an unpacking: the source, the layer, or our disk.

use std::{io, path::PathBuf};

use crate::oci::Digest;

/// Why a layer's tree was not built.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The layer is not at fault: whoever delivers its bytes has failed.
    #[error("read the compressed layer")]
    Read(#[source] io::Error),
    /// An odd or hostile layer. containerd may judge otherwise and gets the layer to unpack by itself.
    #[error("refused the layer at byte {offset} of its tar: {reason}")]
    Refused { offset: u64, reason: Refusal },
    #[error("the layer's tar has the digest {actual}, its image says {expected}")]
    DiffId { expected: Digest, actual: Digest },
    /// Our own file system failed.
    #[error("{doing} `{}` in the staging directory", path.display())]
    Disk { doing: &'static str, path: PathBuf, source: io::Error },
}

impl UnpackError {
    /// The disk or its quota is full: an ordinary event, not a fault.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Disk { source, .. } => is_no_space(source),
            Self::Read(_) | Self::Refused { .. } | Self::DiffId { .. } => false,
        }
    }

    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Refused { .. } => "refused",
            Self::DiffId { .. } => "diff_id",
            Self::Disk { .. } if self.is_no_space() => "no_space",
            Self::Disk { .. } => "disk",
        }
    }
}

pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What is wrong with a layer. Names are quoted as far as they are readable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its compressed stream is broken: {0}")]
    Compression(String),
    #[error("it ends in the middle of {0}")]
    Truncated(&'static str),
    #[error("the header's checksum is wrong")]
    Checksum,
    #[error("a block of zeros is followed by something else than another one")]
    LoneZeroBlock,
    #[error("the header's field `{0}` is no number")]
    Number(&'static str),
    #[error("the entry's size is negative")]
    NegativeSize,
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: &'static str, limit: usize },
    #[error("an extended header's record is malformed: {0}")]
    Pax(&'static str),
    #[error("the extended header's `{0}` has a bad value")]
    PaxValue(&'static str),
    #[error("the sparse map is malformed: {0}")]
    Sparse(&'static str),
    #[error("`{name}` is of type {kind:?}, which containerd does not unpack either")]
    Kind { name: String, kind: char },
    #[error("`{0}` is a whiteout without a name")]
    Whiteout(String),
    #[error("`{0}` lies deeper than {1} directories")]
    TooDeep(String, usize),
    #[error("`{0}` leads through more than {1} symbolic links")]
    TooManyLinks(String, usize),
    #[error("`{0}` lies below something that is no directory")]
    NotADirectory(String),
    #[error("the hard link `{name}` points at `{target}`, which this layer does not have as a file")]
    HardLink { name: String, target: String },
    #[error("the directories' names together are longer than {0} bytes")]
    TooManyDirectories(usize),
    /// The kernel does not take what the layer asks for: a name, a link's target, an attribute.
    #[error("the kernel does not {doing} `{name}` as the layer wants it: {errno}")]
    Kernel { doing: &'static str, name: String, errno: String },
}

/// Why the directories that a layer only implies could not be given the attributes of the layers below.
#[derive(Debug, thiserror::Error)]
#[error("{doing} `{}`", path.display())]
pub struct SettleError {
    pub doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl SettleError {
    /// The disk or its quota is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.source)
    }
}

/// A hostile name ends up in a log line: 200 characters of it at most, control characters escaped.
pub(super) fn quoted(name: &[u8]) -> String {
    name.escape_ascii().to_string().chars().take(200).collect()
}
