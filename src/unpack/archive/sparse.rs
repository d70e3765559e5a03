//! Sparse maps in GNU's four forms: old (type `S`, in the header and blocks behind it), pax 0.0 and 0.1 (in records),
//! pax 1.0 (in front of the content). Read as Go's archive/tar reads them (`handleSparseFile`).

use super::super::error::Refusal;
use super::SPECIAL_LEN_MAX;
use super::entry::{Extent, Segment};
use super::header::{BLOCK_LEN, number};
use super::pax::{Records, SPARSE_MAP, decimal};

/// Offset and length of each run of data, as stated.
pub(super) type Map = Vec<(i64, i64)>;

/// Where the map of a pax header's file is.
pub(super) enum Form {
    /// In the records themselves (0.0, 0.1).
    Records,
    /// In front of the content (1.0).
    Content,
}

pub(super) fn pax_form(records: &Records) -> Option<Form> {
    match (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")) {
        (Some(b"0"), Some(b"0" | b"1")) => Some(Form::Records),
        (Some(b"1"), Some(b"0")) => Some(Form::Content),
        (None, None) if records.get(SPARSE_MAP).is_some() => Some(Form::Records),
        _ => None,
    }
}

pub(super) fn map_of_records(records: &Records) -> Result<Map, Refusal> {
    let count = records.number("GNU.sparse.numblocks")?.ok_or(Refusal::Sparse("no number of blocks"))?;
    let numbers: Vec<i64> = match records.get(SPARSE_MAP) {
        None => Vec::new(),
        Some(map) => map
            .split(|&byte| byte == b',')
            .map(|digits| decimal(digits).ok_or(Refusal::Sparse("not a number")))
            .collect::<Result<_, _>>()?,
    };
    let (pairs, odd) = numbers.as_chunks::<2>();
    if !odd.is_empty() || i64::try_from(pairs.len()) != Ok(count) {
        return Err(Refusal::Sparse("the number of blocks is another one"));
    }
    Ok(pairs.iter().map(|&[start, len]| (start, len)).collect())
}

/// Collects the blocks of a 1.0 map until it is complete: a count, then offsets and lengths, a line each.
#[derive(Default)]
pub(super) struct ContentMap {
    text: Vec<u8>,
    lines: usize,
    lines_wanted: Option<usize>,
}

impl ContentMap {
    /// The map, once the blocks so far hold all of it.
    pub(super) fn push(&mut self, block: &[u8; BLOCK_LEN]) -> Result<Option<Map>, Refusal> {
        self.text.extend_from_slice(block);
        if self.text.len() > SPECIAL_LEN_MAX {
            return Err(Refusal::TooLong { what: "a sparse map", limit: SPECIAL_LEN_MAX });
        }
        self.lines += block.iter().filter(|&&byte| byte == b'\n').count();
        if self.lines_wanted.is_none() && self.lines > 0 {
            let count = self.numbers().next().flatten().and_then(|count| usize::try_from(count).ok());
            let wanted = count.and_then(|count| count.checked_mul(2)?.checked_add(1));
            self.lines_wanted = Some(wanted.ok_or(Refusal::Sparse("a bad number of entries"))?);
        }
        match self.lines_wanted {
            Some(wanted) if self.lines >= wanted => self.complete(wanted).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = Option<i64>> {
        self.text.split(|&byte| byte == b'\n').map(decimal)
    }

    fn complete(&self, lines: usize) -> Result<Map, Refusal> {
        let numbers: Option<Vec<i64>> = self.numbers().take(lines).skip(1).collect();
        let numbers = numbers.ok_or(Refusal::Sparse("not a number"))?;
        Ok(numbers.as_chunks::<2>().0.iter().map(|&[start, len]| (start, len)).collect())
    }
}

/// One table of an old sparse map: in the header (4 entries at byte 386) or in a block behind it (21 at byte 0). Returns
/// whether another block follows.
pub(super) fn old_table(table: &[u8], map: &mut Map) -> Result<bool, Refusal> {
    let (entries, rest) = table.as_chunks::<24>();
    for entry in entries {
        if entry[0] == 0 {
            break;
        }
        map.push((number(&entry[..12], "sparse offset")?, number(&entry[12..], "sparse length")?));
    }
    Ok(rest.first().is_some_and(|&extended| extended != 0))
}

/// # Errors
/// Runs that overlap, go backwards or beyond the file, and runs that are not exactly the `stored` bytes of content.
pub(super) fn extent(map: &Map, len: i64, stored: u64) -> Result<Extent, Refusal> {
    let len = u64::try_from(len).map_err(|_| Refusal::NegativeSize)?;
    let mut segments = Vec::with_capacity(map.len());
    let mut end_before = 0;
    for &(start, run_len) in map {
        let run = u64::try_from(start).ok().zip(u64::try_from(run_len).ok());
        let (start, run_len) = run.ok_or(Refusal::Sparse("a negative number"))?;
        let end = start + run_len;
        if start < end_before || end > len {
            return Err(Refusal::Sparse("runs overlap or leave the file"));
        }
        end_before = end;
        if run_len > 0 {
            segments.push(Segment { start, len: run_len });
        }
    }
    let extent = Extent { len, segments };
    if extent.stored() != stored {
        return Err(Refusal::Sparse("its runs are not what the entry holds"));
    }
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_must_ascend_within_the_file_and_match_the_content() {
        let good = extent(&vec![(0, 4), (8, 0), (8, 2), (16, 0)], 16, 6).unwrap();
        assert_eq!(good.segments, [Segment { start: 0, len: 4 }, Segment { start: 8, len: 2 }]);
        for (map, len, stored) in [
            (vec![(4, 4), (0, 2)], 16, 6),
            (vec![(0, 4), (2, 4)], 16, 8),
            (vec![(10, 8)], 16, 8),
            (vec![(i64::MAX, i64::MAX)], i64::MAX, 8),
            (vec![(-1, 8)], 16, 8),
            (vec![(0, 8)], -1, 8),
            (vec![(0, 8)], 16, 7),
        ] {
            assert!(extent(&map, len, stored).is_err(), "{map:?}");
        }
    }

    #[test]
    fn a_map_in_front_of_the_content_may_span_blocks() {
        let mut text = b"100\n".to_vec();
        for at in 0..100 {
            text.extend_from_slice(format!("{}\n512\n", at * 4096).as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK_LEN), 0);
        let (blocks, _) = text.as_chunks::<BLOCK_LEN>();
        let mut reader = ContentMap::default();
        let mut maps = blocks.iter().map(|block| reader.push(block).unwrap());
        let map = maps.find_map(|map| map).unwrap();
        assert_eq!((map.len(), map[99]), (100, (99 * 4096, 512)));
    }

    #[test]
    fn a_map_without_end_is_refused_at_its_limit() {
        let mut reader = ContentMap::default();
        let refused = (0..=SPECIAL_LEN_MAX / BLOCK_LEN).find_map(|_| reader.push(&[b'1'; BLOCK_LEN]).err());
        assert_eq!(refused, Some(Refusal::TooLong { what: "a sparse map", limit: SPECIAL_LEN_MAX }));
    }
}
