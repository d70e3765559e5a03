//! Records of an extended header (POSIX pax), with the liberties that Go's archive/tar takes (`parsePAX`, `mergePAX`).

use std::collections::BTreeMap;

use super::super::error::Refusal;
use super::entry::Time;

const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_NUMBYTES: &[u8] = b"GNU.sparse.numbytes";
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header by keyword; of equal keywords the last one.
#[derive(Debug, Default)]
pub(super) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    pub(super) fn parse(mut block: &[u8]) -> Result<Self, Refusal> {
        let mut records = BTreeMap::new();
        // Sparse format 0.0 repeats two keywords; joined they are format 0.1.
        let mut sparse_map: Vec<&[u8]> = Vec::new();
        while !block.is_empty() {
            let (keyword, value, rest) = record(block)?;
            block = rest;
            if keyword != SPARSE_OFFSET && keyword != SPARSE_NUMBYTES {
                records.insert(keyword.to_vec(), value.to_vec());
                continue;
            }
            let expected = if sparse_map.len().is_multiple_of(2) { SPARSE_OFFSET } else { SPARSE_NUMBYTES };
            if keyword != expected || value.contains(&b',') {
                return Err(Refusal::Sparse("offsets and lengths do not alternate"));
            }
            sparse_map.push(value);
        }
        if !sparse_map.is_empty() {
            records.insert(SPARSE_MAP.to_vec(), sparse_map.join(&b','));
        }
        Ok(Self(records))
    }

    /// A record's value; an empty one counts as absent.
    pub(super) fn get(&self, keyword: &[u8]) -> Option<&[u8]> {
        self.0.get(keyword).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, keyword: &'static str) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.get(keyword.as_bytes()) else { return Ok(None) };
        decimal(value).map(Some).ok_or(Refusal::PaxValue(keyword))
    }

    pub(super) fn time(&self, keyword: &'static str) -> Result<Option<Time>, Refusal> {
        let Some(value) = self.get(keyword.as_bytes()) else { return Ok(None) };
        time(value).map(Some).ok_or(Refusal::PaxValue(keyword))
    }

    /// Extended attributes; an empty value is a value here.
    pub(super) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let attribute = |(keyword, value): (&Vec<u8>, &Vec<u8>)| {
            keyword.strip_prefix(XATTR).map(|name| (name.to_vec(), value.clone()))
        };
        self.0.iter().filter_map(attribute).collect()
    }
}

/// Keyword, value, and what follows the record.
type Record<'b> = (&'b [u8], &'b [u8], &'b [u8]);

/// `"%d %s=%s\n"`: length of the whole record, keyword, value. The value may hold any byte, line feeds too.
fn record(block: &[u8]) -> Result<Record<'_>, Refusal> {
    let space = block.iter().position(|&byte| byte == b' ').ok_or(Refusal::Pax("no length"))?;
    let len = decimal(&block[..space])
        .and_then(|len| usize::try_from(len).ok())
        .filter(|&len| len > space + 1 && len <= block.len())
        .ok_or(Refusal::Pax("a length that does not fit"))?;
    let (record, rest) = block.split_at(len);
    let record = record[space + 1..].strip_suffix(b"\n").ok_or(Refusal::Pax("no line feed at its end"))?;
    let equals = record.iter().position(|&byte| byte == b'=').ok_or(Refusal::Pax("no `=`"))?;
    let (keyword, value) = (&record[..equals], &record[equals + 1..]);
    let names_something = matches!(keyword, b"path" | b"linkpath" | b"uname" | b"gname");
    if keyword.is_empty() || keyword.contains(&0) || names_something && value.contains(&0) {
        return Err(Refusal::Pax("an empty keyword, or a NUL in a name"));
    }
    Ok((keyword, value, rest))
}

pub(super) fn decimal(digits: &[u8]) -> Option<i64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds with a fraction, of which nanoseconds are kept; may be negative.
fn time(value: &[u8]) -> Option<Time> {
    let (seconds, fraction) = match value.iter().position(|&byte| byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let sign = if seconds.first() == Some(&b'-') { -1 } else { 1 };
    Some(Time::from_parts(decimal(seconds)?, sign * nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let records = Records::parse(b"30 SCHILY.xattr.user.a=\n\0=\xff 1\n12 path=abc\n").unwrap();
        assert_eq!(records.xattrs(), [(b"user.a".to_vec(), b"\n\0=\xff 1".to_vec())]);
        assert_eq!(records.get(b"path"), Some(&b"abc"[..]));
    }

    #[test]
    fn times_keep_nanoseconds_and_sign() {
        for (text, seconds, nanoseconds) in [
            ("12", 12, 0),
            ("12.", 12, 0),
            ("12.5", 12, 500_000_000),
            ("12.0000000019", 12, 1),
            ("-12.5", -12, -500_000_000),
            ("-0.5", 0, -500_000_000),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Time::from_parts(seconds, nanoseconds)), "{text}");
        }
        for text in ["", ".5", "1.x", "1e3", "0x10"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"12 path=abc"[..],
            b"99 path=abc\n",
            b"0 path=abc\n",
            b"-12 path=abc\n",
            b"99999999999999999999 path=abc\n",
            b"3 \n",
            b"9 pathabc\n",
            b"8 =abc \n",
            b"12 path=a\0c\n",
            b"path=abc\n",
        ] {
            assert!(matches!(Records::parse(bad), Err(Refusal::Pax(_))), "{}", bad.escape_ascii());
        }
        let swapped = b"26 GNU.sparse.numbytes=12\n";
        assert!(matches!(Records::parse(swapped), Err(Refusal::Sparse(_))));
    }
}
