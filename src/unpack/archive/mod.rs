//! The tar as a stream of entries, in order, each with its content behind it.
//!
//! The tar crate reads what most tars are; containerd reads what Go's archive/tar takes for a tar, and the two differ
//! just where a layer is odd. So the loop is our own and follows Go's reader (`Reader.next`); the header's layout is the
//! crate's. Whatever has a length that somebody else states has a limit here.

mod entry;
mod header;
mod pax;
mod sparse;

pub use entry::{Device, Entry, Extent, Kind, Segment, Time};

use super::{
    error::{Refusal, UnpackError},
    inflate::Inflated,
};
use header::{BLOCK_LEN, Header};
use pax::Records;
use sparse::Form;

/// Longest extended header, long name and sparse map: Go's archive/tar refuses longer ones too (`maxSpecialFileSize`),
/// so that no layer that containerd takes is refused for it.
pub(super) const SPECIAL_LEN_MAX: usize = 1 << 20;

/// Reads entries from the tar.
pub(super) struct Archive<'a> {
    stream: Inflated<'a>,
    /// Bytes of the current entry's content that nobody has read.
    content_left: u64,
    /// Zeros behind the content, up to the next block.
    padding: u64,
}

/// What the headers before an entry say about it.
#[derive(Default)]
struct Extensions {
    records: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl<'a> Archive<'a> {
    pub(super) fn new(stream: Inflated<'a>) -> Self {
        Self { stream, content_left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extensions = Extensions::default();
        loop {
            if !self.skip_rest()? {
                return Ok(None);
            }
            let offset = self.stream.offset();
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header::parse(&block).map_err(|reason| refused(offset, reason))?;
            self.begin_content(header.kind, header.size).map_err(|reason| refused(offset, reason))?;
            match header.kind {
                b'x' => extensions.records = self.records(offset)?,
                b'g' => return self.records(offset).map(|records| Some(global(offset, header, &records))),
                b'L' => extensions.long_name = self.name("a long name", offset)?,
                b'K' => extensions.long_link = self.name("a long link name", offset)?,
                _ => return self.entry(&block, header, extensions, offset).map(Some),
            }
        }
    }

    /// The content of the entry that `next` has returned.
    pub(super) fn content(&mut self) -> Content<'_, 'a> {
        Content(self)
    }

    pub(super) fn into_stream(self) -> Inflated<'a> {
        self.stream
    }

    /// False at the end of the stream. Go takes missing padding for the end, so that such layers are in use.
    fn skip_rest(&mut self) -> Result<bool, UnpackError> {
        let (content, padding) = (self.content_left, self.padding);
        (self.content_left, self.padding) = (0, 0);
        if !self.stream.skip(content)? {
            return Err(refused(self.stream.offset(), Refusal::Truncated("an entry's content")));
        }
        self.stream.skip(padding)
    }

    /// A header, or `None` at the end: two blocks of zeros, or the end of the stream after at most one.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK_LEN]>, UnpackError> {
        let offset = self.stream.offset();
        let Some(first) = self.block("a header")? else { return Ok(None) };
        if first != [0; BLOCK_LEN] {
            return Ok(Some(first));
        }
        match self.block("a header")? {
            Some(second) if second != [0; BLOCK_LEN] => Err(refused(offset, Refusal::LoneZeroBlock)),
            Some(_) | None => Ok(None),
        }
    }

    fn block(&mut self, what: &'static str) -> Result<Option<[u8; BLOCK_LEN]>, UnpackError> {
        let mut block = [0; BLOCK_LEN];
        match self.stream.read_up_to(&mut block)? {
            0 => Ok(None),
            BLOCK_LEN => Ok(Some(block)),
            _ => Err(refused(self.stream.offset(), Refusal::Truncated(what))),
        }
    }

    /// Links, devices, directories and pipes have no content, whatever size their headers state.
    fn begin_content(&mut self, kind: u8, size: i64) -> Result<(), Refusal> {
        let size = if has_no_content(kind) { 0 } else { size };
        self.content_left = u64::try_from(size).map_err(|_| Refusal::NegativeSize)?;
        self.padding = self.content_left.wrapping_neg() % BLOCK_LEN as u64;
        Ok(())
    }

    fn records(&mut self, offset: u64) -> Result<Records, UnpackError> {
        let block = self.special("an extended header", offset)?;
        Records::parse(&block).map_err(|reason| refused(offset, reason))
    }

    fn name(&mut self, what: &'static str, offset: u64) -> Result<Vec<u8>, UnpackError> {
        Ok(header::text(&self.special(what, offset)?).to_vec())
    }

    /// The content of an entry that describes the next one.
    fn special(&mut self, what: &'static str, offset: u64) -> Result<Vec<u8>, UnpackError> {
        if self.content_left > SPECIAL_LEN_MAX as u64 {
            return Err(refused(offset, Refusal::TooLong { what, limit: SPECIAL_LEN_MAX }));
        }
        let mut bytes = Vec::new();
        let mut content = self.content();
        while content.left() > 0 {
            bytes.extend_from_slice(content.take(u64::MAX)?);
        }
        Ok(bytes)
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK_LEN],
        mut header: Header,
        extensions: Extensions,
        offset: u64,
    ) -> Result<Entry, UnpackError> {
        let at_header = |reason| refused(offset, reason);
        header.merge(&extensions).map_err(at_header)?;
        // V7 tars know directories by their trailing slash only.
        if header.kind == 0 {
            header.kind = if header.name.ends_with(b"/") { b'5' } else { b'0' };
        }
        self.begin_content(header.kind, header.size).map_err(at_header)?;
        let extent = self.extent(block, &mut header, &extensions.records, offset)?;
        let kind = kind(&header, extent).map_err(at_header)?;
        let xattrs = extensions.records.xattrs();
        Ok(entry(offset, header, kind, xattrs))
    }

    fn extent(
        &mut self,
        block: &[u8; BLOCK_LEN],
        header: &mut Header,
        records: &Records,
        offset: u64,
    ) -> Result<Extent, UnpackError> {
        let at_header = |reason| refused(offset, reason);
        let map = if header.kind == b'S' {
            header.size = header::number(&block[483..495], "real size").map_err(at_header)?;
            self.old_sparse_map(block, offset)?
        } else {
            let Some(form) = sparse::pax_form(records) else { return Ok(Extent::dense(self.content_left)) };
            header.apply_sparse(records).map_err(at_header)?;
            match form {
                Form::Records => sparse::map_of_records(records).map_err(at_header)?,
                Form::Content => self.sparse_map_in_content(offset)?,
            }
        };
        if has_no_content(header.kind) {
            return Err(at_header(Refusal::Sparse("for something that is no file")));
        }
        sparse::extent(&map, header.size, self.content_left).map_err(at_header)
    }

    fn old_sparse_map(&mut self, block: &[u8; BLOCK_LEN], offset: u64) -> Result<sparse::Map, UnpackError> {
        let at_header = |reason| refused(offset, reason);
        if !header::is_gnu(block) {
            return Err(at_header(Refusal::Sparse("of type S, but not GNU's")));
        }
        let mut map = Vec::new();
        let mut extended = sparse::old_table(&block[386..483], &mut map).map_err(at_header)?;
        let mut tables_len = 0;
        while extended {
            tables_len += BLOCK_LEN;
            if tables_len > SPECIAL_LEN_MAX {
                let what = "a sparse map";
                return Err(at_header(Refusal::TooLong { what, limit: SPECIAL_LEN_MAX }));
            }
            let table = self.block("a sparse map")?;
            let table = table.ok_or_else(|| at_header(Refusal::Truncated("a sparse map")))?;
            extended = sparse::old_table(&table[..505], &mut map).map_err(at_header)?;
        }
        Ok(map)
    }

    fn sparse_map_in_content(&mut self, offset: u64) -> Result<sparse::Map, UnpackError> {
        let mut map = sparse::ContentMap::default();
        loop {
            let truncated = || refused(offset, Refusal::Truncated("a sparse map"));
            self.content_left = self.content_left.checked_sub(BLOCK_LEN as u64).ok_or_else(truncated)?;
            let block = self.block("a sparse map")?.ok_or_else(truncated)?;
            if let Some(map) = map.push(&block).map_err(|reason| refused(offset, reason))? {
                return Ok(map);
            }
        }
    }
}

impl Header {
    /// Applies what the extended headers override.
    fn merge(&mut self, extensions: &Extensions) -> Result<(), Refusal> {
        let records = &extensions.records;
        self.size = records.number("size")?.unwrap_or(self.size);
        self.uid = records.number("uid")?.unwrap_or(self.uid);
        self.gid = records.number("gid")?.unwrap_or(self.gid);
        self.modified = records.time("mtime")?.unwrap_or(self.modified);
        self.accessed = records.time("atime")?.or(self.accessed);
        records.time("ctime")?;
        override_name(&mut self.name, &[&extensions.long_name, records.get(b"path").unwrap_or_default()]);
        override_name(&mut self.link, &[&extensions.long_link, records.get(b"linkpath").unwrap_or_default()]);
        Ok(())
    }

    fn apply_sparse(&mut self, records: &Records) -> Result<(), Refusal> {
        override_name(&mut self.name, &[records.get(b"GNU.sparse.name").unwrap_or_default()]);
        let len = match records.number("GNU.sparse.size")? {
            None => records.number("GNU.sparse.realsize")?,
            len @ Some(_) => len,
        };
        self.size = len.unwrap_or(self.size);
        Ok(())
    }
}

/// The first name that is stated wins: GNU's over pax', both over the header's.
fn override_name(name: &mut Vec<u8>, stated: &[&[u8]]) {
    if let Some(stated) = stated.iter().find(|stated| !stated.is_empty()) {
        *name = stated.to_vec();
    }
}

fn has_no_content(kind: u8) -> bool {
    matches!(kind, b'1'..=b'6')
}

fn kind(header: &Header, extent: Extent) -> Result<Kind, Refusal> {
    // As the kernel takes them: containerd passes the lower 32 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what containerd does")]
    let device = Device { major: header.device_major as u32, minor: header.device_minor as u32 };
    Ok(match header.kind {
        b'0' | b'S' => Kind::File(extent),
        b'1' => Kind::HardLink { target: header.link.clone() },
        b'2' => Kind::Symlink { target: header.link.clone() },
        b'3' => Kind::CharDevice(device),
        b'4' => Kind::BlockDevice(device),
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            let name = super::error::quoted(&header.name);
            return Err(Refusal::Kind { name, kind: char::from(other) });
        }
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "masked, or what containerd does"
)]
fn entry(offset: u64, header: Header, kind: Kind, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    Entry {
        offset,
        name: header.name,
        kind,
        mode: (header.mode & 0o7777) as u32,
        uid: header.uid as u32,
        gid: header.gid as u32,
        accessed: header.accessed.map_or(header.modified, |accessed| accessed.max(header.modified)),
        modified: header.modified,
        xattrs,
    }
}

fn global(offset: u64, mut header: Header, records: &Records) -> Entry {
    override_name(&mut header.name, &[records.get(b"path").unwrap_or_default()]);
    entry(offset, header, Kind::Global, Vec::new())
}

pub(super) fn refused(offset: u64, reason: Refusal) -> UnpackError {
    UnpackError::Refused { offset, reason }
}

/// The content of one entry. What a sink does not take is skipped.
pub struct Content<'c, 'a>(&'c mut Archive<'a>);

impl Content<'_, '_> {
    /// Bytes not taken yet.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.0.content_left
    }

    /// The next bytes, `len_max` at most; none at the content's end.
    ///
    /// # Errors
    /// The source failed, the compressed stream is broken, or the tar ends within the content.
    pub fn take(&mut self, len_max: u64) -> Result<&[u8], UnpackError> {
        let wanted = len_max.min(self.0.content_left);
        let offset = self.0.stream.offset();
        let bytes = self.0.stream.take(wanted)?;
        if bytes.is_empty() && wanted > 0 {
            return Err(refused(offset, Refusal::Truncated("an entry's content")));
        }
        self.0.content_left -= bytes.len() as u64;
        Ok(bytes)
    }
}
