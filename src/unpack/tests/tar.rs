//! Writes tars, also such as no tar program would write.

use ::tar::Header;

#[derive(Clone)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// An entry as `edit` leaves its header; the checksum comes last.
    pub(super) fn entry(self, kind: u8, name: &[u8], content: &[u8], edit: impl FnOnce(&mut Header)) -> Self {
        self.header(kind, name, content.len() as u64, edit).raw(content).pad()
    }

    pub(super) fn header(mut self, kind: u8, name: &[u8], size: u64, edit: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        let old = header.as_old_mut();
        old.linkflag = [kind];
        let len = name.len().min(100);
        old.name[..len].copy_from_slice(&name[..len]);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name.as_bytes(), content.as_bytes(), |_| {})
    }

    pub(super) fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name.as_bytes(), b"", |header| header.set_mode(mode))
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), b"", |header| set_link(header, target))
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), b"", |header| set_link(header, target))
    }

    /// An extended header for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.entry(b'x', b"PaxHeaders/0", &records_of(records), |_| {})
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn pad(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The offset of the next entry's header.
    pub(super) fn offset(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }

    /// Without the blocks that mark the end.
    pub(super) fn cut(self) -> Vec<u8> {
        self.0
    }
}

pub(super) fn set_link(header: &mut Header, target: &str) {
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
}

pub(super) fn records_of(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (keyword, value) in records {
        let rest = keyword.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        block.extend_from_slice(format!("{len} {keyword}=").as_bytes());
        block.extend_from_slice(value);
        block.push(b'\n');
    }
    block
}
