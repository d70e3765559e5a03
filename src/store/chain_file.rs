//! The file `chain`: a proven chain of a committed blob.
//!
//! ```text
//! 0   magic "flchains"
//! 8   version, u32 little-endian
//! 12  zero, u32
//! 16  length of the blob, u64 little-endian
//! 24  states at the inner piece boundaries, 32 (sha256) or 64 (sha512) bytes each
//! end BLAKE3 of everything before
//! ```
//! The checksum is there because a rotten chain would make peers refuse our good pieces.

use std::{fs, io, path::Path};

use crate::{
    oci::Digest,
    piece::{Chain, PieceLayout},
};

const MAGIC: &[u8; 8] = b"flchains";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 24;
const CHECKSUM_LEN: usize = 32;

fn header(blob_len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&blob_len.to_le_bytes());
    bytes
}

pub(super) fn encode(chain: &Chain) -> Vec<u8> {
    let mut bytes = header(chain.layout().blob_len());
    bytes.extend_from_slice(&chain.to_bytes());
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// The chain in the file at `path`; `None` if the file is not a sound chain of this blob.
pub(super) fn read(path: &Path, digest: &Digest, layout: PieceLayout) -> io::Result<Option<Chain>> {
    let states_len = (layout.count() as usize - 1) * digest.algorithm().digest_len();
    let expected = HEADER_LEN + states_len + CHECKSUM_LEN;
    if fs::metadata(path)?.len() != expected as u64 {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_LEN>() else { return Ok(None) };
    let Some(states) = body.strip_prefix(header(layout.blob_len()).as_slice()) else { return Ok(None) };
    if blake3::hash(body) != blake3::Hash::from_bytes(*checksum) {
        return Ok(None);
    }
    Ok(Chain::from_bytes(digest, layout.blob_len(), states).ok())
}
