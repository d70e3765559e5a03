//! The file `data`, read and written a piece at a time.

use std::{fs::File, io, os::unix::fs::FileExt};

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

/// What a file gave for a piece.
pub(super) enum Found {
    Bytes(Bytes),
    /// The file was cut, or its medium fails, which answers EIO.
    Unreadable,
}

/// Piece `index`, read at its place: many threads may read one file.
pub(super) fn read(file: &File, layout: PieceLayout, index: u32) -> io::Result<Found> {
    let (len, start) = (layout.len_of(index), layout.range(index).start);
    // Not zeroed first: that would be one more pass over every byte that is served.
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = start + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Ok(Found::Unreadable),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(Found::Unreadable),
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
