//! `flotilla pull IMAGE`: the layers of an image into this node's store, through the same pulls that containerd's
//! layers take.

use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::BytesBySource;
use crate::{
    oci::Reference,
    preheat::Preheats,
    pull::{Pull, PullState, PullStatus, Pulls},
};

/// One line of the answer: a layer as it stands, or why there is nothing to pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullLine {
    Layer(LayerLine),
    Failed { reason: String },
}

/// A layer of an image that is being pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerLine {
    pub digest: String,
    /// Bytes.
    pub size: u64,
    pub bytes: BytesBySource,
    /// `waiting`, `arriving`, `proven` or `failed`; the last two are final.
    pub state: String,
    pub reason: Option<String>,
}

/// Pulls the image's layers; yields a line whenever one of them has moved on, and ends when all have ended.
pub(super) fn pull(
    preheats: Preheats,
    pulls: Pulls,
    reference: Reference,
) -> impl Stream<Item = PullLine> + Send + 'static {
    stream::once(async move {
        match preheats.layers(&reference).await {
            Ok(layers) => {
                let started = layers.into_iter().map(|layer| follow(pulls.start(layer)));
                stream::select_all(started.collect::<Vec<_>>()).left_stream()
            }
            Err(error) => {
                let reason = crate::pull::chain_of(&error);
                stream::once(async move { PullLine::Failed { reason } }).right_stream()
            }
        }
    })
    .flatten()
}

/// The states of one pull until its last; holding the pull keeps it going.
fn follow(pull: Pull) -> stream::BoxStream<'static, PullLine> {
    let changes = pull.watch();
    stream::unfold(Some((pull, changes, true)), |state| async move {
        let (pull, mut changes, is_first) = state?;
        if !is_first {
            changes.changed().await.ok()?;
        }
        let status = changes.borrow_and_update().clone();
        let ended = matches!(status.state, PullState::Proven | PullState::Failed(_));
        Some((PullLine::Layer(line(&status)), (!ended).then_some((pull, changes, false))))
    })
    .boxed()
}

fn line(status: &PullStatus) -> LayerLine {
    let (state, reason) = match &status.state {
        PullState::Waiting => ("waiting", None),
        PullState::Arriving => ("arriving", None),
        PullState::Proven => ("proven", None),
        PullState::Failed(reason) => ("failed", Some((*reason).to_owned())),
    };
    let (digest, bytes) = (status.digest.to_string(), status.bytes.into());
    LayerLine { digest, size: status.len, bytes, state: state.to_owned(), reason }
}
