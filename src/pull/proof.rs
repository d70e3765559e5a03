//! The in-order chain: one blocking thread for each pull. Nothing else proves a blob.

use tokio::sync::mpsc;

use super::{
    arrival::{Arrival, Next, Seen},
    flight::News,
};
use crate::{oci::Digest, piece::ChainBuilder};

/// Follows the pieces until the chain closes or the pull ends.
pub(super) fn follow(arrival: &Arrival, digest: &Digest, news: &mpsc::Sender<News>) {
    let count = arrival.layout().count();
    let mut builder = ChainBuilder::new(digest, arrival.layout().blob_len());
    let mut seen = Seen::default();
    loop {
        let index = builder.next();
        if index == count {
            let ended = match builder.finish() {
                Some(chain) => News::Closed(chain),
                None => News::Unclosed,
            };
            let closed = matches!(ended, News::Closed(_));
            if news.blocking_send(ended).is_err() || closed {
                return;
            }
        }
        match arrival.next(index, &mut seen) {
            Next::Piece(bytes) => {
                builder.push(&bytes);
                if news.blocking_send(News::Front(builder.next())).is_err() {
                    return;
                }
            }
            Next::Rewind(piece) => builder.rewind(piece),
            Next::Failed(_) => return,
        }
    }
}
