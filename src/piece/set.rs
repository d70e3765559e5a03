//! Which pieces of a blob somebody has.

use std::ops::Range;

/// A set of piece indexes below `count`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceSet {
    words: Vec<u64>,
    count: u32,
    present: u32,
}

impl PieceSet {
    #[must_use]
    pub fn empty(count: u32) -> Self {
        Self { words: vec![0; count.div_ceil(64) as usize], count, present: 0 }
    }

    #[must_use]
    pub fn full(count: u32) -> Self {
        let mut set = Self::empty(count);
        for index in 0..count {
            set.insert(index);
        }
        set
    }

    /// How many pieces the blob has.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many pieces are in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.present
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.present == self.count
    }

    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        index < self.count && self.words[index as usize / 64] & (1 << (index % 64)) != 0
    }

    /// Adds `index`; `false` if it was there already or is beyond the blob.
    pub fn insert(&mut self, index: u32) -> bool {
        if index >= self.count || self.contains(index) {
            return false;
        }
        self.words[index as usize / 64] |= 1 << (index % 64);
        self.present += 1;
        true
    }

    /// Takes `index` out; `false` if it was not there.
    pub fn remove(&mut self, index: u32) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.words[index as usize / 64] &= !(1 << (index % 64));
        self.present -= 1;
        true
    }

    /// The pieces in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.words).flat_map(|(word, &bits)| ones(word, bits))
    }

    /// The pieces that are in both sets, ascending.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        let both = self.words.iter().zip(&other.words).map(|(ours, theirs)| ours & theirs);
        (0..).zip(both).flat_map(|(word, bits)| ones(word, bits))
    }

    /// The pieces that are not in the set, ascending.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).filter(|&index| !self.contains(index))
    }

    /// The missing pieces as runs of neighbours, ascending.
    #[must_use]
    pub fn missing_runs(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for index in self.missing() {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }

    /// How many pieces from the first on are there without a gap.
    #[must_use]
    pub fn prefix_len(&self) -> u32 {
        self.missing().next().unwrap_or(self.count)
    }

    /// One bit a piece, the first piece in the lowest bit of the first byte.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.count.div_ceil(8) as usize);
        bytes
    }

    /// The set that [`Self::to_bytes`] wrote; `None` unless it has exactly the bits of `count` pieces.
    #[must_use]
    pub fn from_bytes(count: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != count.div_ceil(8) as usize {
            return None;
        }
        let mut set = Self::empty(count);
        for (position, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let index = u32::try_from(position * 8 + bit).ok()?;
                if !set.insert(index) {
                    return None;
                }
            }
        }
        Some(set)
    }
}

/// The pieces of one word.
fn ones(word: u32, bits: u64) -> impl Iterator<Item = u32> {
    let rest = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
    rest.take_while(|bits| *bits != 0).map(move |bits| word * 64 + bits.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_and_prefix_follow_the_gaps() {
        let mut set = PieceSet::empty(10);
        for index in [0, 1, 4, 9] {
            assert!(set.insert(index));
        }
        assert!(!set.insert(4) && !set.insert(10));
        assert_eq!(set.missing_runs(), vec![2..4, 5..9]);
        assert_eq!((set.prefix_len(), set.len()), (2, 4));
        assert!(set.remove(0) && !set.remove(0));
        assert_eq!(set.prefix_len(), 0);
    }

    #[test]
    fn bits_beyond_the_blob_are_refused() {
        assert!(PieceSet::from_bytes(3, &[0b1000]).is_none());
        assert!(PieceSet::from_bytes(3, &[0, 0]).is_none());
        assert!(PieceSet::from_bytes(3, &[0b111]).unwrap().is_full());
    }

    proptest! {
        #[test]
        fn bytes_and_back(count in 1u32..300, indexes in proptest::collection::vec(0u32..300, 0..100)) {
            let mut set = PieceSet::empty(count);
            for index in indexes { set.insert(index); }
            prop_assert_eq!(PieceSet::from_bytes(count, &set.to_bytes()), Some(set.clone()));
            prop_assert_eq!(set.iter().count() + set.missing().count(), count as usize);
        }
    }
}
