//! The in-order chain: one blocking thread for each pull. Nothing else proves a blob.
//!
//! A piece whose bytes took one state of a chain to the next when they came is not hashed again: its link begins where
//! this chain has come to, or it is of no use. Every read of the blob is checked as ever.

use tokio::sync::mpsc;

use super::{
    arrival::{Arrival, Commit, Next, Seen},
    flight::News,
};
use crate::{oci::Digest, piece::ChainBuilder};

/// Follows the pieces until the chain closes and the blob is committed, or the pull ends.
pub(super) fn follow(arrival: &Arrival, digest: &Digest, news: &mpsc::Sender<News>) {
    let count = arrival.layout().count();
    let mut builder = ChainBuilder::new(digest, arrival.layout().blob_len());
    let mut seen = Seen::default();
    loop {
        let index = builder.next();
        if index == count {
            for told in close(&builder, arrival, &seen) {
                let committed = matches!(told, News::Committed(_));
                if news.blocking_send(told).is_err() || committed {
                    return;
                }
            }
        }
        let link = arrival.next_link(index, seen);
        if !link.is_some_and(|chain| builder.follow(&chain)) {
            match arrival.next(index, &mut seen) {
                Next::Piece { bytes, .. } => builder.push(&bytes),
                Next::Rewind(piece) => {
                    builder.rewind(piece);
                    continue;
                }
                Next::Failed(_) => return,
            }
        }
        if news.blocking_send(News::Front(builder.next())).is_err() {
            return;
        }
    }
}

/// The chain has been run over all pieces: what there is to tell of it.
fn close(builder: &ChainBuilder, arrival: &Arrival, seen: &Seen) -> Vec<News> {
    let Some(chain) = builder.finish() else { return vec![News::Unclosed] };
    match arrival.commit(&chain, seen) {
        Commit::Ended(committed) => vec![News::Committed(Box::new(committed))],
        Commit::TakenBack(pieces) => pieces.into_iter().map(News::Rotten).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;
    use crate::{
        oci::Algorithm,
        piece::{Chain, PieceLayout},
        store::{Arriving, Blob, Settings, Store},
    };

    const PIECES: u32 = 3;
    const BLOB_LEN: u64 = (128 << 10) + 5;

    /// A few pieces, all here.
    struct Bench {
        store: Store,
        bytes: Vec<u8>,
        digest: Digest,
        arriving: Arriving,
        arrival: Arc<Arrival>,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new(news: &mpsc::Sender<News>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let settings = Settings {
                dir: dir.path().join("store"),
                quota: Some(1 << 32),
                keep_free: Some(0),
                sync: false,
                ..Settings::default()
            };
            let store = Store::open(settings).unwrap();
            let bytes = vec![7; usize::try_from(BLOB_LEN).unwrap()];
            let digest = Digest::of(Algorithm::Sha256, &bytes);
            let arriving = store.arrive(&digest, bytes.len() as u64).unwrap();
            let arrival = Arc::new(Arrival::new(arriving.layout(), news.clone()));
            let bench = Self { store, bytes, digest, arriving, arrival, _dir: dir };
            assert_eq!(bench.arriving.layout().count(), PIECES);
            (0..PIECES).for_each(|index| bench.comes(index));
            bench.arrival.begin(bench.arriving.clone());
            bench
        }

        fn piece(&self, index: u32) -> &[u8] {
            let range = PieceLayout::of(BLOB_LEN).range(index);
            &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        }

        fn comes(&self, index: u32) {
            let piece = self.piece(index);
            self.arriving.write(index, piece, blake3::hash(piece)).unwrap();
            let _is_new = self.arrival.arrived(index);
        }

        fn chain(&self) -> Arc<Chain> {
            let mut builder = ChainBuilder::new(&self.digest, self.bytes.len() as u64);
            (0..PIECES).for_each(|index| builder.push(self.piece(index)));
            Arc::new(builder.finish().unwrap())
        }

        fn is_stored_whole(&self) -> bool {
            let blob = self.store.get(&self.digest);
            let read = |blob: &Blob| (0..PIECES).map(|index| blob.read(index).unwrap()).collect::<Vec<_>>();
            blob.is_some_and(|blob| read(&blob).concat() == self.bytes)
        }
    }

    #[test]
    fn a_piece_taken_back_after_the_chain_has_closed_runs_it_again() {
        let (news, _inbox) = mpsc::channel(1);
        let bench = Bench::new(&news);
        let (mut builder, mut seen) =
            (ChainBuilder::new(&bench.digest, bench.bytes.len() as u64), Seen::default());
        for index in 0..PIECES {
            let Next::Piece { bytes, .. } = bench.arrival.next(index, &mut seen) else {
                panic!("all are here")
            };
            builder.push(&bytes);
        }
        let chain = builder.finish().unwrap();
        bench.arrival.take_back(0);
        assert!(matches!(bench.arrival.commit(&chain, &seen), Commit::TakenBack(news) if news.is_empty()));
        assert!(bench.store.get(&bench.digest).is_none());
        assert!(matches!(bench.arrival.next(PIECES, &mut seen), Next::Rewind(0)));

        bench.comes(0);
        assert!(matches!(bench.arrival.commit(&chain, &seen), Commit::Ended(Ok(_))));
        // What is proven is not taken back any more.
        bench.arrival.take_back(1);
        assert!(bench.is_stored_whole());
    }

    #[test]
    fn a_piece_that_fitted_its_chain_is_not_read_for_the_proof_and_one_that_did_not_is() {
        let (news, mut inbox) = mpsc::channel(8);
        let bench = Bench::new(&news);
        let chain = bench.chain();
        // One that begins elsewhere is of no use: the piece is read.
        let mut other = ChainBuilder::new(&bench.digest, bench.bytes.len() as u64);
        let mut elsewhere = Vec::new();
        for index in 0..PIECES - 1 {
            other.push(&vec![8; bench.piece(index).len()]);
            elsewhere.extend_from_slice(&other.state().to_bytes());
        }
        let elsewhere = Chain::from_bytes(&bench.digest, bench.bytes.len() as u64, &elsewhere).unwrap();
        bench.arrival.linked(0, chain.clone());
        bench.arrival.linked(1, Arc::new(elsewhere));
        bench.arrival.linked(2, chain);
        let read = |index| bench.arrival.next_link(index, Seen::default()).is_some();
        assert!((0..PIECES).all(read));
        follow(&bench.arrival, &bench.digest, &news);
        let mut committed = false;
        while let Ok(news) = inbox.try_recv() {
            committed |= matches!(news, News::Committed(committed) if committed.is_ok());
        }
        assert!(committed && bench.is_stored_whole());
    }

    #[test]
    fn what_is_taken_back_has_no_link_any_more() {
        let (news, _inbox) = mpsc::channel(1);
        let bench = Bench::new(&news);
        let chain = bench.chain();
        let mut seen = Seen::default();
        bench.arrival.linked(0, chain.clone());
        assert!(bench.arrival.next_link(0, seen).is_some());
        bench.arrival.take_back(0);
        bench.comes(0);
        assert!(bench.arrival.next_link(0, seen).is_none(), "it has to hear of that first");
        assert!(matches!(bench.arrival.next(0, &mut seen), Next::Piece { .. }));
        assert!(bench.arrival.next_link(0, seen).is_none(), "it came without a chain");
        bench.arrival.linked(0, chain);
        assert!(bench.arrival.next_link(0, seen).is_some());
    }

    #[test]
    fn a_piece_that_rots_before_the_commit_is_fetched_again() {
        let (news, mut inbox) = mpsc::channel(1);
        let bench = Bench::new(&news);
        let (arrival, digest) = (bench.arrival.clone(), bench.digest.clone());
        let following = thread::spawn(move || follow(&arrival, &digest, &news));
        // The queue takes one: the follower has read the first piece, and cannot close before it is heard.
        while inbox.is_empty() {
            thread::yield_now();
        }
        bench.arriving.forget(0);
        let mut refetched = false;
        let committed = loop {
            let news = inbox.blocking_recv().unwrap();
            if matches!(news, News::Rotten(0)) {
                assert!(!std::mem::replace(&mut refetched, true), "once is enough");
                bench.comes(0);
            } else if let News::Committed(committed) = news {
                break committed;
            } else {
                assert!(matches!(news, News::Front(_)), "nothing else happens");
            }
        };
        assert!(committed.is_ok());
        following.join().unwrap();
        assert!(refetched && bench.is_stored_whole());
    }
}
