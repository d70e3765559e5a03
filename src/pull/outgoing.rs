//! Room in memory for what is on its way to clients.
//!
//! A piece has up to 4 MiB, and a client may take minutes for it: hundreds of clients would hold gigabytes. Whole pieces
//! have room for some of them, who get the most out of a reading. Whoever finds none within a moment is given his piece in
//! slices, and it is read and checked anew for each: more work, in little memory, and however slow the others are, he goes on.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of whole pieces, for all clients together: eight of the longest, of which a client at full speed has two or three.
const WHOLE_MAX: usize = 32 << 20;
/// They are counted in these.
const UNIT: usize = 64 << 10;
/// What a client gets of a piece for which there is no room: two of them for each of 200 clients are 25 MiB.
const SLICE_LEN: usize = 64 << 10;
/// Pieces that are read for the sake of a slice at a time, 16 MiB at most: it is work for the cores, and they are few.
const READERS: usize = 4;
/// How long room is waited for: clients that read as fast as they are served pass it on within this time. Once that was
/// in vain nobody waits, until there is room again.
const ROOM_WAIT: Duration = Duration::from_millis(100);

pub(super) struct Outgoing {
    whole: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    /// The last who waited for room found none.
    full: AtomicBool,
}

/// Held while a piece is read, and for as long as any of it is kept.
pub(super) enum Room {
    Whole(OwnedSemaphorePermit),
    Slice(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit),
}

impl Outgoing {
    pub(super) fn new() -> Self {
        let whole = Arc::new(Semaphore::new(WHOLE_MAX / UNIT));
        Self { whole, readers: Arc::new(Semaphore::new(READERS)), full: AtomicBool::new(false) }
    }

    /// Room for a piece, or a few short ones, of which `len` bytes may be kept.
    pub(super) async fn room(&self, len: usize) -> Room {
        if len > SLICE_LEN {
            let units = u32::try_from(len.div_ceil(UNIT)).expect("a piece is at most 4 MiB");
            let whole = self.whole.clone().acquire_many_owned(units);
            let wait = if self.full.load(Ordering::Relaxed) { Duration::ZERO } else { ROOM_WAIT };
            let found = tokio::time::timeout(wait, whole).await;
            self.full.store(found.is_err(), Ordering::Relaxed);
            if let Ok(permit) = found {
                return Room::Whole(permit.expect("never closed"));
            }
        }
        Room::Slice(self.readers.clone().acquire_owned().await.expect("never closed"))
    }
}

impl Room {
    /// Whether there is room for all that was asked for.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    /// As much of a piece's `wanted` part as there is room for, from its beginning.
    pub(super) fn keep(self, piece: &Bytes, wanted: Range<usize>) -> Bytes {
        match self {
            Self::Whole(room) => Bytes::from_owner(Kept { bytes: piece.slice(wanted), _room: room }),
            Self::Slice(_) => {
                let end = wanted.end.min(wanted.start + SLICE_LEN);
                Bytes::copy_from_slice(&piece[wanted.start..end])
            }
        }
    }
}

struct Kept {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_what_there_is_room_for_a_piece_comes_in_slices() {
        let outgoing = Outgoing::new();
        let piece = Bytes::from(vec![7; 4 << 20]);
        let mut kept = Vec::new();
        for _ in 0..WHOLE_MAX / piece.len() {
            kept.push(outgoing.room(piece.len()).await.keep(&piece, 5..piece.len()));
        }
        assert!(kept.iter().all(|bytes| bytes.len() == piece.len() - 5));
        for _ in 0..3 {
            kept.push(outgoing.room(piece.len()).await.keep(&piece, 5..piece.len()));
        }
        assert!(kept[WHOLE_MAX / piece.len()..].iter().all(|bytes| bytes.len() == SLICE_LEN));
        drop(kept);
        assert_eq!(outgoing.room(piece.len()).await.keep(&piece, 0..9).len(), 9);
        assert!(matches!(outgoing.room(piece.len()).await, Room::Whole(_)));
    }

    #[tokio::test]
    async fn a_short_piece_needs_no_room() {
        let outgoing = Outgoing::new();
        let piece = Bytes::from(vec![7; SLICE_LEN]);
        let kept = outgoing.room(piece.len()).await.keep(&piece, 0..piece.len());
        assert_eq!((kept.len(), outgoing.whole.available_permits()), (SLICE_LEN, WHOLE_MAX / UNIT));
    }
}
