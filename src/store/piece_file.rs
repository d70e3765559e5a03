//! The file `data`, read and written a piece at a time.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;

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
    /// The file is too short, or the disk cannot read it any more.
    Unreadable,
}

/// Piece `index`, read at its place: many threads may read one file.
pub(super) fn read(file: &File, layout: PieceLayout, index: u32) -> io::Result<Found> {
    let mut bytes = vec![0; layout.len_of(index)];
    match file.read_exact_at(&mut bytes, layout.range(index).start) {
        Ok(()) => Ok(Found::Bytes(bytes.into())),
        Err(error) if is_rot(&error) => Ok(Found::Unreadable),
        Err(error) => Err(error),
    }
}

/// A medium that fails answers EIO; a file that was cut ends early.
fn is_rot(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Writes piece `index` at its place.
pub(super) fn write(file: &File, layout: PieceLayout, index: u32, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, layout.range(index).start)
}
