//! Inflates a layer and builds its tree from the tar.
//!
//! ```text
//! compressed bytes ── inflate ── tar bytes ──┬─ sha256/512 ── diffID
//!                                            └─ archive ── Entry + Content ── TreeSink
//!                                                                             └─ files: a directory
//! ```
//! One blocking pass; memory is bounded, whatever the layer says about itself. The yardstick is containerd's own
//! unpacking (pkg/archive/tar.go on Go's archive/tar): what it makes we make, entry by entry and bit by bit, and what it
//! refuses we refuse with the reason and the place, so that containerd has the last word. `tests/it/unpack_compare.rs`
//! holds us to it beside a real one. Known differences, where nobody can see them or where containerd has no result:
//! - a sparse file gets its holes instead of zeros, and GNU's old sparse files (type `S`) are unpacked;
//! - aufs' own files (`.wh..wh.…`) leave no whiteout of a name that no layer has;
//! - a directory that is implied behind a file, a whiteout or a circle of links in a layer below is taken;
//! - paths deeper than 256 directories are refused, and with a chain of links in the middle of a path containerd reads a
//!   relative link beside the first link, we where the kernel would.
//!
//! Invariants: nothing outside the staging directory is ever touched (`files::directories`); a directory that the layer
//! only implies is 0755 of root until `settle` gives it what the layers below say, so that until then a tree belongs to a
//! diffID, afterwards to a chainID.

mod archive;
mod error;
mod files;
mod inflate;
mod settle;

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use crate::oci::{Compression, Digest, Hasher};

pub use archive::{Content, Device, Entry, Extent, Kind, Segment, Time};
pub use error::{Refusal, SettleError, UnpackError};
pub use settle::settle;

use archive::Archive;
use files::Files;
use inflate::Inflated;

/// A layer as its image describes it.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// As the media type states it; the stream's first bytes have the last word.
    pub compression: Compression,
    /// Digest of the whole inflated stream.
    pub diff_id: &'a Digest,
    /// No layer lies below: whiteouts delete what this layer itself brought.
    pub bottom: bool,
}

/// A tree that was built and whose diffID holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Directories that the layer only implies, sorted, relative to the tree.
    pub implied: Vec<PathBuf>,
    /// Directories whose own entry came after one below them. containerd has by then given them the extended attributes
    /// of the layers below, and they keep those that their entry does not set. Sorted.
    pub stated_late: Vec<PathBuf>,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
}

/// Builds a form of a tree from the entries of a tar in their order.
pub trait TreeSink {
    type Tree;

    /// Adds one entry. `content` has the bytes of a file; what is not taken is skipped.
    ///
    /// # Errors
    /// The entry is refused, the disk fails, or reading `content` does.
    fn entry(&mut self, entry: &Entry, content: &mut Content<'_, '_>) -> Result<(), UnpackError>;

    /// All entries are there.
    ///
    /// # Errors
    /// As for an entry.
    fn finish(self) -> Result<Self::Tree, UnpackError>;
}

/// Unpacks a layer as files into `staging`, an empty directory that nobody else writes to. Blocks; reads `compressed` to
/// its end. After an error the directory holds a part of the tree and is good for nothing.
///
/// # Errors
/// See [`UnpackError`]: the source, the layer, the digest or the disk.
pub fn unpack(layer: &Layer<'_>, compressed: impl Read, staging: &Path) -> Result<Built, UnpackError> {
    let files = Files::new(staging, layer.bottom)?;
    let (mut built, entries, bytes) = build(layer, compressed, files)?;
    (built.entries, built.bytes) = (entries, bytes);
    Ok(built)
}

/// Feeds a layer to a sink and checks the diffID. Returns the tree, the number of entries and the length of the tar.
fn build<S: TreeSink>(
    layer: &Layer<'_>,
    compressed: impl Read,
    mut sink: S,
) -> Result<(S::Tree, u64, u64), UnpackError> {
    let hasher = Hasher::new(layer.diff_id.algorithm());
    let mut archive = Archive::new(Inflated::new(compressed, layer.compression, hasher)?);
    let mut entries = 0;
    while let Some(entry) = archive.next()? {
        sink.entry(&entry, &mut archive.content())?;
        entries += 1;
    }
    let (actual, bytes) = archive.into_stream().finish()?;
    if actual != *layer.diff_id {
        return Err(UnpackError::DiffId { expected: layer.diff_id.clone(), actual });
    }
    Ok((sink.finish()?, entries, bytes))
}

#[cfg(test)]
mod tests;
