//! The length of pieces, a function of the blob's length alone.

use std::ops::Range;

/// Blobs up to a length have pieces of a length: 1024 at most below 1 GiB. A piece is passed on when it is
/// whole, so that a crowd is slower than one copy by the time of some twenty pieces: in the simulation of 8 nodes and
/// 120 MiB the makespan is 1.03 x F/B with pieces of 256 KiB and 1.10 with 1 MiB, of 16 nodes 1.09 and 1.15. Of 16 real
/// nodes and 25 MB it is 1.63 with 256 KiB and 1.25 with 64 KiB; in less there is more to say of a piece than it is worth.
/// What trackers send with their answers is one piece.
const PIECES: [(u64, u64); 4] =
    [(128 << 10, 128 << 10), (32 << 20, 64 << 10), (256 << 20, 256 << 10), (1 << 30, 1 << 20)];
/// Above, pieces of 4 MiB keep the map of a 100 GiB blob at 25,600 pieces.
const LARGE_PIECE: u64 = 4 << 20;

/// The longest blob that is taken: 2^18 pieces, whose statements take 8 MiB of a tracker's memory. What registries accept
/// is far below, so a longer one is a manifest, a registry or a member that lies.
pub const BLOB_LEN_MAX: u64 = 1 << 40;

/// How a blob of `len` bytes, at most [`BLOB_LEN_MAX`], is cut. All pieces have the same length but the last, which is shorter; an empty
/// blob has one empty piece, so that every blob has something to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceLayout {
    blob_len: u64,
    piece_len: u64,
}

impl PieceLayout {
    #[must_use]
    pub fn of(blob_len: u64) -> Self {
        let fits = PIECES.iter().find(|(blob_len_max, _)| blob_len <= *blob_len_max);
        let piece_len = fits.map_or(LARGE_PIECE, |(_, piece_len)| *piece_len);
        Self { blob_len, piece_len }
    }

    /// Bytes of the whole blob.
    #[must_use]
    pub fn blob_len(self) -> u64 {
        self.blob_len
    }

    /// Bytes of every piece but the last.
    #[must_use]
    pub fn piece_len(self) -> u64 {
        self.piece_len
    }

    /// Number of pieces, at least one.
    #[must_use]
    pub fn count(self) -> u32 {
        let count = self.blob_len.div_ceil(self.piece_len).max(1);
        u32::try_from(count).expect("blobs are at most 1 TiB, which is 2^18 pieces")
    }

    /// The bytes of piece `index` within the blob.
    ///
    /// # Panics
    /// If there is no such piece.
    #[must_use]
    pub fn range(self, index: u32) -> Range<u64> {
        assert!(index < self.count(), "piece {index} of {}", self.count());
        let start = u64::from(index) * self.piece_len;
        start..self.blob_len.min(start + self.piece_len)
    }

    /// The piece that byte `at` of the blob is in; the last one for what is behind them all.
    #[must_use]
    pub fn index_at(self, at: u64) -> u32 {
        let last = self.count() - 1;
        u32::try_from(at / self.piece_len).map_or(last, |index| index.min(last))
    }

    /// The length of piece `index`, in bytes.
    #[must_use]
    pub fn len_of(self, index: u32) -> usize {
        let range = self.range(index);
        usize::try_from(range.end - range.start).expect("a piece is at most 4 MiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_wire_specification() {
        assert_eq!(PieceLayout::of(128 << 10).count(), 1);
        assert_eq!(PieceLayout::of((128 << 10) + 1).piece_len(), 64 << 10);
        assert_eq!(PieceLayout::of(32 << 20).piece_len(), 64 << 10);
        assert_eq!(PieceLayout::of((32 << 20) + 1).piece_len(), 256 << 10);
        assert_eq!(PieceLayout::of(256 << 20).piece_len(), 256 << 10);
        assert_eq!(PieceLayout::of((256 << 20) + 1).piece_len(), 1 << 20);
        assert_eq!(PieceLayout::of(1 << 30).piece_len(), 1 << 20);
        assert_eq!(PieceLayout::of((1 << 30) + 1).piece_len(), 4 << 20);
        assert_eq!(PieceLayout::of(0).count(), 1);
        assert_eq!(PieceLayout::of(0).len_of(0), 0);
        let three = PieceLayout::of((128 << 10) + 5);
        assert_eq!((three.count(), three.len_of(1), three.len_of(2)), (3, 64 << 10, 5));
    }
}
