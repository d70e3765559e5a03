//! What the head of an answer says about the bytes that follow, held against what was asked.

use std::ops::Range;

use http::{HeaderMap, StatusCode, header};

/// How the body of an answer is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Framing {
    /// Where its first byte stands in the blob.
    pub(super) start: u64,
    /// Bytes that it has.
    pub(super) len: u64,
    /// The registry kept to the range.
    pub(super) ranged: bool,
}

/// Why an answer is no answer to a range of this blob.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FramingError {
    /// The blob has this length over there.
    Length(u64),
    /// The range cannot be served, though the length is right or unknown: ask without one.
    NoRanges,
    Nonsense(&'static str),
}

/// Reads the head of an answer to `asked` of a blob of `len` bytes.
pub(super) fn framing(
    status: StatusCode,
    headers: &HeaderMap,
    asked: &Range<u64>,
    len: u64,
) -> Result<Framing, FramingError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match status {
        StatusCode::OK => match text(header::CONTENT_LENGTH).and_then(|value| value.parse().ok()) {
            Some(stated) if stated != len => Err(FramingError::Length(stated)),
            Some(_) | None => Ok(Framing { start: 0, len, ranged: false }),
        },
        StatusCode::PARTIAL_CONTENT => {
            let range = text(header::CONTENT_RANGE).and_then(content_range);
            let (range, total) = range.ok_or(FramingError::Nonsense("answered 206 without the range"))?;
            let range = range.ok_or(FramingError::Nonsense("answered 206 with an unsatisfied range"))?;
            match total {
                Some(total) if total != len => return Err(FramingError::Length(total)),
                Some(_) | None => {}
            }
            if range.start != asked.start || range.end > asked.end {
                return Err(FramingError::Nonsense("answered another range than asked"));
            }
            let body_len = range.end - range.start;
            match text(header::CONTENT_LENGTH).and_then(|value| value.parse::<u64>().ok()) {
                Some(stated) if stated != body_len => {
                    Err(FramingError::Nonsense("its Content-Length contradicts its Content-Range"))
                }
                Some(_) | None => Ok(Framing { start: range.start, len: body_len, ranged: true }),
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => match text(header::CONTENT_RANGE).and_then(content_range) {
            Some((None, Some(total))) if total != len => Err(FramingError::Length(total)),
            Some(_) | None => Err(FramingError::NoRanges),
        },
        _ => Err(FramingError::Nonsense("answered a range with a status that means no bytes")),
    }
}

/// `bytes 0-99/1000`, `bytes 0-99/*`, `bytes */1000` (RFC 9110, 14.4): the range and the total.
pub(super) fn content_range(text: &str) -> Option<(Option<Range<u64>>, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    if range == "*" {
        return Some((None, total));
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let end = last.checked_add(1)?;
    let valid = first < end && total.is_none_or(|total| end <= total);
    valid.then_some((Some(first..end), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(status: u16, headers: &[(&str, &str)]) -> Result<Framing, FramingError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        framing(StatusCode::from_u16(status).unwrap(), &map, &(100..200), 1000)
    }

    #[test]
    fn a_range_that_was_kept_to() {
        let whole = Framing { start: 100, len: 100, ranged: true };
        assert_eq!(framed(206, &[("content-range", "bytes 100-199/1000")]), Ok(whole));
        let short = Framing { start: 100, len: 50, ranged: true };
        assert_eq!(framed(206, &[("content-range", "bytes 100-149/*")]), Ok(short));
    }

    #[test]
    fn a_range_that_was_ignored() {
        let all = || Ok(Framing { start: 0, len: 1000, ranged: false });
        assert_eq!(framed(200, &[("content-length", "1000")]), all());
        assert_eq!(framed(200, &[]), all());
        assert_eq!(framed(200, &[("content-length", "999")]), Err(FramingError::Length(999)));
    }

    #[test]
    fn a_blob_of_another_length_is_noticed_at_once() {
        let length = Err(FramingError::Length(150));
        assert_eq!(framed(206, &[("content-range", "bytes 100-149/150")]), length);
        assert_eq!(framed(416, &[("content-range", "bytes */150")]), length);
        assert_eq!(framed(416, &[("content-range", "bytes */1000")]), Err(FramingError::NoRanges));
        assert_eq!(framed(416, &[]), Err(FramingError::NoRanges));
    }

    #[test]
    fn answers_that_contradict_themselves_are_refused() {
        for headers in [
            &[][..],
            &[("content-range", "bytes */1000")],
            &[("content-range", "bytes 0-99/1000")],
            &[("content-range", "bytes 100-200/1000")],
            &[("content-range", "bytes 199-100/1000")],
            &[("content-range", "bytes 100-18446744073709551615/*")],
            &[("content-range", "lines 100-199/1000")],
            &[("content-range", "bytes 100-199/1000"), ("content-length", "7")],
        ] {
            assert!(matches!(framed(206, headers), Err(FramingError::Nonsense(_))), "{headers:?}");
        }
        assert!(matches!(framed(204, &[]), Err(FramingError::Nonsense(_))));
    }
}
