//! Pieces of a blob: how long they are, which of them are here, and the chain that proves them.
//!
//! ```text
//! blob   |  piece 0  |  piece 1  |  piece 2 |
//! chain  s0          s1          s2         s3 + padding = digest
//! ```
//! `s0` is the hash's initial value. Piece `i` is good if and only if compressing it takes `s[i]` to `s[i+1]`.

mod chain;
mod layout;
mod set;

pub use chain::{Chain, ChainBuilder, ChainError, State};
pub use layout::{BLOB_LEN_MAX, PieceLayout};
pub use set::PieceSet;

/// The digest that a member states for a piece while no chain proves it yet.
pub type Statement = blake3::Hash;
