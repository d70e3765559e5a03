//! The file `data`, read and written a piece at a time.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};

use crate::{oci::Digest, piece::PieceLayout};

/// Why a piece cannot be had from the store.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("piece {index} of {digest} is not here")]
    Absent { digest: Digest, index: u32 },
    #[error("piece {index} of {digest} has rotted on disk")]
    Rotten { digest: Digest, index: u32 },
    #[error("cannot read piece {index} of {digest}")]
    Io { digest: Digest, index: u32, source: io::Error },
}

/// What a file gave for a run of pieces.
pub(super) enum Found {
    Bytes(Bytes),
    /// The file was cut, or its medium fails, which answers EIO, before the end of this piece.
    Unreadable(u32),
}

/// The pieces of `run`, at least one, read at their place: many threads may read one file.
pub(super) fn read(file: &File, layout: PieceLayout, run: Range<u32>) -> io::Result<Found> {
    let (start, end) = (layout.range(run.start).start, layout.range(run.end - 1).end);
    let len = usize::try_from(end - start).expect("a few pieces");
    // Not zeroed first: that would be one more pass over every byte that is served.
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = start + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) | Err(Errno::IO) => return Ok(Found::Unreadable(layout.index_at(at))),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(Found::Bytes(bytes.into()))
}

/// Writes piece `index` at its place.
pub(super) fn write(file: &File, layout: PieceLayout, index: u32, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, layout.range(index).start)
}
