//! The fields of one 512-byte header, read as Go's archive/tar reads them (reader.go `readHeader`, strconv.go), since
//! containerd does: both checksums, octal or base-256 numbers, V7, ustar, star and GNU layouts.
//!
//! ```text
//! 0 name  100 mode  108 uid  116 gid  124 size  136 mtime  148 checksum  156 type  157 link  257 magic
//! ustar: 329 device, 345 prefix (155)    star: 345 prefix (131), 476 atime, 488 ctime, 508 "tar\0"
//! gnu:   329 device, 345 atime, 357 ctime, 386 sparse map, 482 extended, 483 real size
//! ```

use tar::Header as Layout;

use super::super::error::Refusal;
use super::entry::Time;

pub(super) const BLOCK_LEN: usize = 512;

/// A header's own statements, before extended headers change them.
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: Time,
    pub(super) accessed: Option<Time>,
    pub(super) device_major: i64,
    pub(super) device_minor: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// # Errors
    /// A wrong checksum and a field that is no number.
    pub(super) fn parse(block: &[u8; BLOCK_LEN]) -> Result<Self, Refusal> {
        check_sum(block)?;
        let old = Layout::from_byte_slice(block).as_old();
        let mut header = Self {
            kind: old.linkflag[0],
            name: text(&old.name).to_vec(),
            link: text(&old.linkname).to_vec(),
            size: number(&old.size, "size")?,
            mode: number(&old.mode, "mode")?,
            uid: number(&old.uid, "uid")?,
            gid: number(&old.gid, "gid")?,
            modified: Time::from_parts(number(&old.mtime, "mtime")?, 0),
            accessed: None,
            device_major: 0,
            device_minor: 0,
        };
        let format = format(block);
        if format == Format::V7 {
            return Ok(header);
        }
        header.device_major = number(&block[329..337], "devmajor")?;
        header.device_minor = number(&block[337..345], "devminor")?;
        let prefix = header.extend(block, format)?;
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    /// Reads what the format has beyond V7 and returns the name's prefix.
    fn extend<'b>(&mut self, block: &'b [u8; BLOCK_LEN], format: Format) -> Result<&'b [u8], Refusal> {
        let ustar_prefix = text(&block[345..500]);
        match format {
            Format::V7 => Ok(b""),
            Format::Ustar => Ok(ustar_prefix),
            Format::Star => {
                self.accessed = Some(Time::from_parts(number(&block[476..488], "atime")?, 0));
                number(&block[488..500], "ctime")?;
                Ok(text(&block[345..476]))
            }
            Format::Gnu => match gnu_times(block) {
                Ok(accessed) => {
                    self.accessed = accessed;
                    Ok(b"")
                }
                // Go before 1.8 wrote a prefix over GNU's times (golang.org/issue/12594).
                Err(_) if ustar_prefix.is_ascii() => Ok(ustar_prefix),
                Err(_) => Ok(b""),
            },
        }
    }
}

/// GNU's access time, if it states one. Its change time must be a number too.
fn gnu_times(block: &[u8; BLOCK_LEN]) -> Result<Option<Time>, Refusal> {
    let (accessed, changed) = (&block[345..357], &block[357..369]);
    if changed[0] != 0 {
        number(changed, "ctime")?;
    }
    if accessed[0] == 0 {
        return Ok(None);
    }
    Ok(Some(Time::from_parts(number(accessed, "atime")?, 0)))
}

fn format(block: &[u8; BLOCK_LEN]) -> Format {
    match (&block[257..263], &block[263..265], &block[508..512]) {
        (b"ustar\0", _, b"tar\0") => Format::Star,
        (b"ustar\0", _, _) => Format::Ustar,
        (b"ustar ", b" \0", _) => Format::Gnu,
        _ => Format::V7,
    }
}

pub(super) fn is_gnu(block: &[u8; BLOCK_LEN]) -> bool {
    format(block) == Format::Gnu
}

/// POSIX sums unsigned bytes, Sun's tar signed ones; the checksum field itself counts as spaces.
fn check_sum(block: &[u8; BLOCK_LEN]) -> Result<(), Refusal> {
    let stated = octal(&block[148..156]).ok_or(Refusal::Checksum)?;
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    if stated == unsigned || stated == signed { Ok(()) } else { Err(Refusal::Checksum) }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(field)
}

/// Octal digits, or with the first bit set a big-endian number in two's complement.
pub(super) fn number(field: &[u8], name: &'static str) -> Result<i64, Refusal> {
    let parsed = match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    };
    parsed.ok_or(Refusal::Number(name))
}

fn base256(field: &[u8]) -> Option<i64> {
    // A negative number is read as its complement, which is positive.
    let inverted = if field[0] & 0x40 == 0 { 0x00 } else { 0xff };
    let mut magnitude: u64 = 0;
    for (at, &byte) in field.iter().enumerate() {
        let byte = (byte ^ inverted) & if at == 0 { 0x7f } else { 0xff };
        if magnitude >> 56 > 0 {
            return None;
        }
        magnitude = magnitude << 8 | u64::from(byte);
    }
    let magnitude = i64::try_from(magnitude).ok()?;
    Some(if inverted == 0 { magnitude } else { !magnitude })
}

fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(first) = field.iter().position(|byte| !padding(byte)) else { return Some(0) };
    let last = field.iter().rposition(|byte| !padding(byte))?;
    let digits = text(&field[first..=last]);
    if !digits.iter().all(|byte| matches!(byte, b'0'..=b'7')) {
        return None;
    }
    let digits = str::from_utf8(digits).ok()?;
    u64::from_str_radix(digits, 8).ok().map(u64::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        assert_eq!(number(b"0000644\0", "n"), Ok(0o644));
        assert_eq!(number(b" 644 \0\0\0", "n"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0", "n"), Ok(0));
        assert_eq!(number(b"77777777777\0", "n"), Ok(0o77_777_777_777));
        assert_eq!(number(b"64\x004\0\0\0\0", "n"), Ok(0o64));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0", "n"), Ok(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "n"), Ok(-2));
        assert_eq!(number(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "n"), Ok(i64::MAX));
        for bad in [
            &b"0000648\0"[..],
            b"+644\0\0\0\0",
            b"-1\0",
            b"6 4\0",
            b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(number(bad, "n"), Err(Refusal::Number("n")), "{}", bad.escape_ascii());
        }
    }
}
