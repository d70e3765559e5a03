//! From the compressed layer to the bytes of its tar: inflated, hashed and counted in one pass.
//!
//! ```text
//! source (Read) -> Tagged -> BufReader -> decoder (Read) -> Inflated: buffer, hash, offset -> archive
//! ```
//! An error of the source passes through every decoder as it is and keeps its tag, so that "the peer went away" is
//! never taken for "the layer is broken".

use std::{
    fmt,
    io::{self, BufRead, BufReader, Cursor, Read},
};

use crate::oci::{Compression, Digest, Hasher};

use super::error::{Refusal, UnpackError};

/// Tar bytes inflated at a time. Large enough that a call costs nothing beside its bytes, small enough to stay in a
/// core's second-level cache from the inflater over the hash to the copy into the file.
const BUFFER_LEN: usize = 256 * 1024;
/// Compressed bytes read at a time: a layer inflates two- to fourfold.
const COMPRESSED_BUFFER_LEN: usize = 128 * 1024;
/// Log2 of the largest zstd window: 128 MiB, the most that `zstd -d` takes without `--long`, hence the most that a
/// layer can use and be unpacked everywhere. It bounds the memory of one layer.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A stream decoder: another inflate is another arm of `decoder`.
type Decoder<'a> = Box<dyn Read + 'a>;

/// The tar of a layer as a stream of buffers.
pub(super) struct Inflated<'a> {
    decoder: Decoder<'a>,
    hasher: Hasher,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Offset in the tar of `buffer[start]`.
    offset: u64,
}

impl<'a> Inflated<'a> {
    pub(super) fn new(
        compressed: impl Read + 'a,
        stated: Compression,
        hasher: Hasher,
    ) -> Result<Self, UnpackError> {
        let mut source = Tagged(compressed);
        let magic = magic(&mut source).map_err(|error| classify(error, 0))?;
        let compression = compression(stated, &magic);
        let source = BufReader::with_capacity(COMPRESSED_BUFFER_LEN, Cursor::new(magic).chain(source));
        let decoder = decoder(source, compression).map_err(|error| classify(error, 0))?;
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        Ok(Self { decoder, hasher, buffer, start: 0, end: 0, offset: 0 })
    }

    /// Offset in the tar of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, `len_max` at most; none at the end.
    pub(super) fn take(&mut self, len_max: u64) -> Result<&[u8], UnpackError> {
        if self.start == self.end {
            self.refill()?;
        }
        let available = self.end - self.start;
        let len = usize::try_from(len_max).unwrap_or(usize::MAX).min(available);
        let taken = self.start..self.start + len;
        self.start += len;
        self.offset += len as u64;
        Ok(&self.buffer[taken])
    }

    fn refill(&mut self) -> Result<(), UnpackError> {
        let read = loop {
            match self.decoder.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|error| classify(error, self.offset))?,
            }
        };
        (self.start, self.end) = (0, read);
        self.hasher.update(&self.buffer[..read]);
        Ok(())
    }

    /// Fills `into` as far as the stream goes; fewer bytes mean the end.
    pub(super) fn read_up_to(&mut self, into: &mut [u8]) -> Result<usize, UnpackError> {
        let mut filled = 0;
        while filled < into.len() {
            let bytes = self.take((into.len() - filled) as u64)?;
            if bytes.is_empty() {
                break;
            }
            let end = filled + bytes.len();
            into[filled..end].copy_from_slice(bytes);
            filled = end;
        }
        Ok(filled)
    }

    /// Skips `len` bytes; false when the stream ends before that.
    pub(super) fn skip(&mut self, len: u64) -> Result<bool, UnpackError> {
        let mut left = len;
        while left > 0 {
            let skipped = self.take(left)?.len() as u64;
            if skipped == 0 {
                return Ok(false);
            }
            left -= skipped;
        }
        Ok(true)
    }

    /// Reads to the end and returns the diffID and the tar's length.
    pub(super) fn finish(mut self) -> Result<(Digest, u64), UnpackError> {
        while !self.take(u64::MAX)?.is_empty() {}
        Ok((self.hasher.finish(), self.offset))
    }
}

/// The stream's first bytes decide, as in containerd (archive/compression, `DetectCompression`): layers whose media
/// type is wrong about it are in use, and the diffID is checked in any case.
fn compression(stated: Compression, magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame; without the statement four such bytes are as well a file's name.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] if stated == Compression::Zstd => Compression::Zstd,
        _ => Compression::None,
    }
}

fn decoder<'a>(source: impl BufRead + 'a, compression: Compression) -> io::Result<Decoder<'a>> {
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

/// The first four bytes, fewer in a shorter stream.
fn magic(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = Vec::new();
    source.take(4).read_to_end(&mut magic)?;
    Ok(magic)
}

/// Marks the errors of the source that the decoders pass through.
struct Tagged<R>(R);

impl<R: Read> Read for Tagged<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io::Error::other(SourceFailed(error))),
                Ok(read) => return Ok(read),
            }
        }
    }
}

#[derive(Debug)]
struct SourceFailed(io::Error);

impl fmt::Display for SourceFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the source failed")
    }
}

impl std::error::Error for SourceFailed {}

fn classify(error: io::Error, offset: u64) -> UnpackError {
    match error.downcast::<SourceFailed>() {
        Ok(SourceFailed(error)) => UnpackError::Read(error),
        Err(error) => UnpackError::Refused { offset, reason: Refusal::Compression(error.to_string()) },
    }
}
