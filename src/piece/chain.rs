//! The states of SHA-2 at piece boundaries.
//!
//! SHA-2 is a chain of compressions, so the state before a piece and the piece give the state after it, and the
//! state after the last piece with its padding is the digest. A list of states is believed only as far as bytes
//! prove it: to forge a link is a free-start collision on the full hash, which nobody knows how to make.

use sha2::block_api::{compress256, compress512};

use crate::oci::{Algorithm, Digest};

use super::PieceLayout;

/// FIPS 180-4, 5.3.3.
const SHA256_INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// FIPS 180-4, 5.3.5.
const SHA512_INITIAL: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

/// The hash's state at a block boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Sha256([u32; 8]),
    Sha512([u64; 8]),
}

impl State {
    /// The state before the first byte.
    #[must_use]
    pub fn initial(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(SHA256_INITIAL),
            Algorithm::Sha512 => Self::Sha512(SHA512_INITIAL),
        }
    }

    /// The state after `bytes`, a whole number of blocks (64 bytes for sha256, 128 for sha512).
    #[must_use]
    fn after_blocks(self, bytes: &[u8]) -> Self {
        match self {
            Self::Sha256(mut state) => {
                let (blocks, rest) = bytes.as_chunks::<64>();
                debug_assert!(rest.is_empty());
                compress256(&mut state, blocks);
                Self::Sha256(state)
            }
            Self::Sha512(mut state) => {
                let (blocks, rest) = bytes.as_chunks::<128>();
                debug_assert!(rest.is_empty());
                compress512(&mut state, blocks);
                Self::Sha512(state)
            }
        }
    }

    /// The digest of a blob of `blob_len` bytes whose last piece is `tail`, from the state before that piece.
    #[must_use]
    fn close(self, tail: &[u8], blob_len: u64) -> Digest {
        let (algorithm, block_len) = match self {
            Self::Sha256(_) => (Algorithm::Sha256, 64),
            Self::Sha512(_) => (Algorithm::Sha512, 128),
        };
        let whole = tail.len() / block_len * block_len;
        let (blocks, rest) = tail.split_at(whole);
        let mut padded = rest.to_vec();
        padded.push(0x80);
        // The length in bits ends the last block: 8 bytes for sha256, 16 for sha512.
        let length_len = block_len / 8;
        while (padded.len() + length_len) % block_len != 0 {
            padded.push(0);
        }
        let bits = u128::from(blob_len) * 8;
        padded.extend_from_slice(&bits.to_be_bytes()[16 - length_len..]);
        let bytes = self.after_blocks(blocks).after_blocks(&padded).to_bytes();
        Digest::from_bytes(algorithm, &bytes).expect("a state has its algorithm's length")
    }

    /// Big-endian words, as in the digest: 32 or 64 bytes.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Sha256(words) => words.iter().flat_map(|word| word.to_be_bytes()).collect(),
            Self::Sha512(words) => words.iter().flat_map(|word| word.to_be_bytes()).collect(),
        }
    }

    fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => {
                let (words, rest) = bytes.as_chunks::<4>();
                let words: [[u8; 4]; 8] = words.try_into().ok()?;
                rest.is_empty().then(|| Self::Sha256(words.map(u32::from_be_bytes)))
            }
            Algorithm::Sha512 => {
                let (words, rest) = bytes.as_chunks::<8>();
                let words: [[u8; 8]; 8] = words.try_into().ok()?;
                rest.is_empty().then(|| Self::Sha512(words.map(u64::from_be_bytes)))
            }
        }
    }
}

/// The states of a blob at its inner piece boundaries. Whether it is true is for the pieces to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    digest: Digest,
    layout: PieceLayout,
    /// `states[i]` stands before piece `i + 1`; one less than there are pieces.
    inner: Vec<State>,
}

/// Why bytes are no chain of this blob.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    #[error("a chain of {digest} has {expected} bytes; this one has {actual}")]
    Length { digest: Digest, expected: usize, actual: usize },
}

impl Chain {
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The state before piece `index`.
    #[must_use]
    pub fn before(&self, index: u32) -> State {
        match index {
            0 => State::initial(self.digest.algorithm()),
            _ => self.inner[index as usize - 1],
        }
    }

    /// Whether `bytes` are piece `index`: they take the state before it to the state after it, or, for the last
    /// piece, to the digest.
    #[must_use]
    pub fn proves(&self, index: u32, bytes: &[u8]) -> bool {
        if index >= self.layout.count() || bytes.len() != self.layout.len_of(index) {
            return false;
        }
        let before = self.before(index);
        if index + 1 == self.layout.count() {
            before.close(bytes, self.layout.blob_len()) == self.digest
        } else {
            before.after_blocks(bytes) == self.before(index + 1)
        }
    }

    /// The inner states, big-endian: 32 bytes (sha256) or 64 (sha512) for each piece but the last.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.inner.iter().flat_map(|state| state.to_bytes()).collect()
    }

    /// The chain that [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// The bytes have another length than a chain of this blob.
    pub fn from_bytes(digest: &Digest, blob_len: u64, bytes: &[u8]) -> Result<Self, ChainError> {
        let layout = PieceLayout::of(blob_len);
        let algorithm = digest.algorithm();
        let expected = (layout.count() as usize - 1) * algorithm.digest_len();
        if bytes.len() != expected {
            return Err(ChainError::Length { digest: digest.clone(), expected, actual: bytes.len() });
        }
        let inner = bytes
            .chunks_exact(algorithm.digest_len())
            .map(|state| State::from_bytes(algorithm, state).expect("chunks have the length of a state"))
            .collect();
        Ok(Self { digest: digest.clone(), layout, inner })
    }
}

/// Builds the chain of a blob whose pieces come in order.
#[derive(Clone, Debug)]
pub struct ChainBuilder {
    digest: Digest,
    layout: PieceLayout,
    states: Vec<State>,
    closed: Option<Digest>,
}

impl ChainBuilder {
    #[must_use]
    pub fn new(digest: &Digest, blob_len: u64) -> Self {
        let states = vec![State::initial(digest.algorithm())];
        Self { digest: digest.clone(), layout: PieceLayout::of(blob_len), states, closed: None }
    }

    /// The piece that comes next; the number of pieces when all are in.
    #[must_use]
    pub fn next(&self) -> u32 {
        let pushed = self.states.len() - 1 + usize::from(self.closed.is_some());
        u32::try_from(pushed).expect("no more states than pieces")
    }

    /// Takes the next piece.
    ///
    /// # Panics
    /// If it has another length than the next piece, or all pieces are in.
    pub fn push(&mut self, bytes: &[u8]) {
        let index = self.next();
        assert_eq!(bytes.len(), self.layout.len_of(index), "length of piece {index}");
        let before = *self.states.last().expect("the initial state is always there");
        if index + 1 == self.layout.count() {
            self.closed = Some(before.close(bytes, self.layout.blob_len()));
        } else {
            self.states.push(before.after_blocks(bytes));
        }
    }

    /// Takes the next piece without its bytes, which `chain` has been shown to prove: a link that begins where this
    /// builder stands is as good as hashing them. `false`, and nothing taken, if it begins elsewhere.
    pub fn follow(&mut self, chain: &Chain) -> bool {
        let index = self.next();
        let fits =
            chain.digest == self.digest && index < self.layout.count() && chain.before(index) == self.state();
        if fits && index + 1 == self.layout.count() {
            self.closed = Some(chain.digest.clone());
        } else if fits {
            self.states.push(chain.before(index + 1));
        }
        fits
    }

    /// Forgets piece `index` and all behind it, to run them again.
    pub fn rewind(&mut self, index: u32) {
        self.closed = None;
        self.states.truncate(index as usize + 1);
    }

    /// The state before the next piece.
    #[must_use]
    pub fn state(&self) -> State {
        *self.states.last().expect("the initial state is always there")
    }

    /// The digest of what came in, once all pieces have.
    #[must_use]
    pub fn actual(&self) -> Option<&Digest> {
        self.closed.as_ref()
    }

    /// The proven chain, if all pieces are in and it closes on the digest.
    #[must_use]
    pub fn finish(&self) -> Option<Chain> {
        (self.closed.as_ref() == Some(&self.digest)).then(|| Chain {
            digest: self.digest.clone(),
            layout: self.layout,
            inner: self.states[1..].to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn build(algorithm: Algorithm, bytes: &[u8]) -> ChainBuilder {
        let digest = Digest::of(algorithm, bytes);
        let mut builder = ChainBuilder::new(&digest, bytes.len() as u64);
        let layout = PieceLayout::of(bytes.len() as u64);
        for index in 0..layout.count() {
            let range = layout.range(index);
            builder.push(&bytes[range.start as usize..range.end as usize]);
        }
        builder
    }

    #[test]
    fn a_chain_closes_on_the_digest_for_every_awkward_length() {
        let piece = 128 << 10;
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for len in [0, 1, 55, 56, 63, 64, 111, 112, 128, piece - 1, piece, piece + 1, 2 * piece + 119] {
                assert!(build(algorithm, &blob(len)).finish().is_some(), "{algorithm:?} {len}");
            }
        }
    }

    #[test]
    fn each_piece_is_proven_alone_and_a_flipped_bit_is_not() {
        let bytes = blob((3 << 16) + 77);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let chain = build(algorithm, &bytes).finish().unwrap();
            for index in [3, 1, 0, 2] {
                let range = chain.layout().range(index);
                let mut piece = bytes[range.start as usize..range.end as usize].to_vec();
                assert!(chain.proves(index, &piece));
                piece[5] ^= 1;
                assert!(!chain.proves(index, &piece));
                assert!(!chain.proves(index, &piece[1..]));
            }
            assert!(!chain.proves(4, b""));
        }
    }

    #[test]
    fn a_chain_survives_bytes_and_back() {
        let bytes = blob((2 << 16) + 1);
        let chain = build(Algorithm::Sha256, &bytes).finish().unwrap();
        let digest = chain.digest().clone();
        let written = chain.to_bytes();
        assert_eq!(Chain::from_bytes(&digest, bytes.len() as u64, &written), Ok(chain));
        assert!(Chain::from_bytes(&digest, bytes.len() as u64, &written[1..]).is_err());
    }

    #[test]
    fn a_proven_piece_is_followed_from_where_its_link_begins_only() {
        let bytes = blob((2 << 16) + 77);
        let chain = build(Algorithm::Sha256, &bytes).finish().unwrap();
        let range = chain.layout().range(0);
        let first = &bytes[range.start as usize..range.end as usize];
        let mut other = first.to_vec();
        other[9] ^= 4;
        let mut builder = ChainBuilder::new(chain.digest(), bytes.len() as u64);
        builder.push(&other);
        assert!(!builder.follow(&chain) && builder.next() == 1, "it stands elsewhere");
        builder.rewind(0);
        builder.push(first);
        assert!(builder.follow(&chain) && builder.follow(&chain));
        assert_eq!(builder.finish().as_ref(), Some(&chain));
        assert!(!builder.follow(&chain), "there is nothing behind the last piece");
    }

    #[test]
    fn wrong_bytes_do_not_close_and_a_rewound_builder_does() {
        let bytes = blob((2 << 16) + 9);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let mut builder = ChainBuilder::new(&digest, bytes.len() as u64);
        let piece = 64usize << 10;
        let mut bad = bytes[piece..2 * piece].to_vec();
        bad[0] ^= 0x80;
        builder.push(&bytes[..piece]);
        builder.push(&bad);
        builder.push(&bytes[2 * piece..]);
        assert!(builder.finish().is_none() && builder.actual().is_some());
        builder.rewind(1);
        builder.push(&bytes[piece..2 * piece]);
        builder.push(&bytes[2 * piece..]);
        assert!(builder.finish().is_some());
    }
}
