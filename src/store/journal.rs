//! The file `pieces`: which pieces of a blob are here, and the BLAKE3 digest of each.
//!
//! ```text
//! 0   magic "flpieces"
//! 8   version, u32 little-endian
//! 12  zero, u32
//! 16  length of the blob, u64 little-endian
//! 24  records of 36 bytes:  u32 little-endian: 0 hole | piece index + 1, top bit set when it is forgotten
//!                           32 bytes: BLAKE3 of the piece
//! ```
//! While a blob arrives the file grows at its end and the last record of a piece counts. Records carry no checksum
//! and are not synced: after a restart each is held against the bytes it speaks of, so a torn, stale or invented
//! record costs one piece at most. A hole is what a failed write leaves behind. A committed blob has exactly one
//! record for each piece, in order.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::piece::{PieceLayout, Statement};

const MAGIC: &[u8; 8] = b"flpieces";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 24;
const RECORD_LEN: usize = 36;
const FORGOTTEN: u32 = 1 << 31;

/// A journal that is being written.
pub(super) struct Journal {
    file: File,
    records: AtomicU64,
}

impl Journal {
    /// Goes on with the journal in `file`, which holds `records` records.
    pub(super) fn new(file: File, records: u64) -> Self {
        Self { file, records: AtomicU64::new(records) }
    }

    /// Says that piece `index` is here and has this digest.
    pub(super) fn have(&self, index: u32, statement: &Statement) -> io::Result<()> {
        self.append(&record(index + 1, statement))
    }

    /// Says that piece `index` is not here any more.
    pub(super) fn forget(&self, index: u32) -> io::Result<()> {
        self.append(&record((index + 1) | FORGOTTEN, &Statement::from_bytes([0; 32])))
    }

    /// Each record gets its own place, so that one that fails leaves a hole and not a shift.
    fn append(&self, record: &[u8; RECORD_LEN]) -> io::Result<()> {
        let position = self.records.fetch_add(1, Ordering::Relaxed);
        self.file.write_all_at(record, HEADER_LEN as u64 + position * RECORD_LEN as u64)
    }
}

fn record(mark: u32, statement: &Statement) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[..4].copy_from_slice(&mark.to_le_bytes());
    record[4..].copy_from_slice(statement.as_bytes());
    record
}

/// The file's bytes for these pieces, in order.
pub(super) fn encode<'a>(layout: PieceLayout, pieces: impl Iterator<Item = (u32, &'a Statement)>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&layout.blob_len().to_le_bytes());
    for (index, statement) in pieces {
        bytes.extend_from_slice(&record(index + 1, statement));
    }
    bytes
}

/// What the journal at `path` says about each piece; nothing is known of any piece when there is no such file, or
/// it is not a journal of a blob of this length.
pub(super) fn replay(path: &Path, layout: PieceLayout) -> io::Result<Vec<Option<Statement>>> {
    let mut pieces = vec![None; layout.count() as usize];
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pieces),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    if !header_fits(&mut reader, layout)? {
        return Ok(pieces);
    }
    while let Some((mark, statement)) = next_record(&mut reader)? {
        let forgotten = mark & FORGOTTEN != 0;
        let index = (mark & !FORGOTTEN).checked_sub(1);
        let Some(slot) = index.and_then(|index| pieces.get_mut(index as usize)) else { continue };
        *slot = (!forgotten).then_some(statement);
    }
    Ok(pieces)
}

/// The digests of all pieces of a committed blob; `None` if the file is not exactly that.
pub(super) fn read_committed(path: &Path, layout: PieceLayout) -> io::Result<Option<Vec<Statement>>> {
    let mut reader = BufReader::new(File::open(path)?);
    if !header_fits(&mut reader, layout)? {
        return Ok(None);
    }
    let mut statements = Vec::with_capacity(layout.count() as usize);
    for index in 0..layout.count() {
        match next_record(&mut reader)? {
            Some((mark, statement)) if mark == index + 1 => statements.push(statement),
            _ => return Ok(None),
        }
    }
    Ok(next_record(&mut reader)?.is_none().then_some(statements))
}

fn header_fits(reader: &mut impl Read, layout: PieceLayout) -> io::Result<bool> {
    let mut header = [0; HEADER_LEN];
    match reader.read_exact(&mut header) {
        Ok(()) => Ok(header[..] == encode(layout, std::iter::empty())[..]),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The next whole record; `None` at the end or at a torn one.
fn next_record(reader: &mut impl Read) -> io::Result<Option<(u32, Statement)>> {
    let mut record = [0; RECORD_LEN];
    match reader.read_exact(&mut record) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let (mark, statement) = record.split_first_chunk::<4>().expect("a record is longer than its mark");
    let statement: [u8; 32] = statement.try_into().expect("a record is a mark and 32 bytes");
    Ok(Some((u32::from_le_bytes(*mark), Statement::from_bytes(statement))))
}
