//! What an exchange is asked to decide with, and what it decides.

use crate::{
    mesh::Member,
    oci::Digest,
    piece::Statement,
    swarm::message::{Name, Report, Run},
};
use bytes::Bytes;

/// How a piece from a peer is checked when it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Statement(Statement),
    Chain,
}

/// What became of a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It passed its check and is stored.
    Good(Statement),
    Wrong,
    /// The peer does not have it.
    Absent,
    /// The peer's upload slots are taken.
    Busy,
    Failed,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Fetch {
        peer: Member,
        index: u32,
        check: Check,
    },
    /// And check the pieces that are here with it: the answer is [`super::Exchange::chain_checked`].
    FetchChain {
        peer: Member,
    },
    /// The chain was a lie, or cannot be told from one.
    DropChain,
    ReadOrigin {
        run: Run,
    },
    StopOrigin {
        run: Run,
    },
    Tell(Report),
    /// The piece is not what it should be: it leaves the store, and readers behind it rewind.
    Forget {
        index: u32,
    },
    /// Read these from the origin, in this order, until one differs.
    Audit {
        order: Vec<(u32, Statement, Name)>,
    },
    /// Ask `voucher` what it stated of pieces that it read itself: the answer is [`super::Exchange::repeated`].
    AskStatements {
        voucher: Name,
    },
    /// It stated other bytes for the piece than the proven ones, and has said so itself.
    Ban {
        member: Member,
        index: u32,
    },
    /// This node has read other bytes for the piece than the proven ones.
    Misled {
        index: u32,
    },
    /// Check these with the digest, and keep them: all of a small blob.
    Keep {
        bytes: Bytes,
    },
    /// Tell the tracker all of this small blob, which is proven.
    Share,
    Fail {
        reason: String,
    },
}

/// Who this pull is.
#[derive(Clone, Debug)]
pub struct Setting {
    pub digest: Digest,
    pub blob_len: u64,
    pub me: Member,
    pub reads_origin: bool,
    /// Breaks ties between pieces and between peers.
    pub seed: u64,
}
