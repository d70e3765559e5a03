//! `flotilla pull IMAGE`: the layers of an image into this node's store, through the same pulls that containerd's
//! layers take.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::BytesBySource;
use crate::{
    oci::{self, Descriptor, Index, Manifest, Reference},
    origin::{Asker, Kind, Origin, OriginError},
    pull::{Pull, PullState, PullStatus, Pulls, Want},
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

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
enum PreheatError {
    #[error("cannot read {what} of {image} from its registry")]
    Origin { what: &'static str, image: String, source: OriginError },
    #[error("{what} of {image} is not usable")]
    Document { what: &'static str, image: String, source: oci::DocumentError },
    #[error("{image} has no image for linux/{architecture}")]
    Platform { image: String, architecture: &'static str },
    #[error("{image} is of media type {media_type}, which is neither an image nor an index of images")]
    MediaType { image: String, media_type: String },
}

/// Pulls the image's layers; yields a JSON line whenever one of them has moved on, and ends when all have ended.
pub(super) fn pull(
    origin: Origin,
    pulls: Pulls,
    reference: Reference,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    stream::once(async move {
        match layers(&origin, &reference).await {
            Ok(layers) => {
                let started = layers.into_iter().map(|layer| {
                    let origins = vec![reference.repository.clone()];
                    let image = Some(reference.to_string());
                    let (digest, len) = (layer.digest, layer.size);
                    let (kind, asker) = (Kind::Blob, Asker::Node);
                    follow(pulls.start(Want { digest, len, origins, kind, asker, image }))
                });
                stream::select_all(started.collect::<Vec<_>>()).left_stream()
            }
            Err(error) => {
                let reason = crate::pull::chain_of(&error);
                stream::once(async move { PullLine::Failed { reason } }).right_stream()
            }
        }
    })
    .flatten()
    .map(|line| {
        let mut json = serde_json::to_vec(&line).expect("lines are plain data");
        json.push(b'\n');
        Ok(Bytes::from(json))
    })
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
    let bytes =
        BytesBySource { local: status.bytes.local, peer: status.bytes.peer, origin: status.bytes.origin };
    LayerLine { digest: status.digest.to_string(), size: status.len, bytes, state: state.to_owned(), reason }
}

/// The layers of the image that `reference` names, for this machine's platform.
async fn layers(origin: &Origin, reference: &Reference) -> Result<Vec<Descriptor>, PreheatError> {
    let image = || reference.to_string();
    let failed = |what| move |source| PreheatError::Origin { what, image: image(), source };
    let unusable = |what| move |source| PreheatError::Document { what, image: image(), source };
    let document = origin.resolve(reference).await.map_err(failed("the manifest"))?;
    if oci::is_manifest(&document.media_type) {
        return Ok(Manifest::parse(&document.bytes).map_err(unusable("the manifest"))?.layers);
    }
    if !oci::is_index(&document.media_type) {
        return Err(PreheatError::MediaType { image: image(), media_type: document.media_type });
    }
    let index = Index::parse(&document.bytes).map_err(unusable("the index"))?;
    let architecture = architecture();
    let entry = index
        .manifest_for("linux", architecture)
        .ok_or_else(|| PreheatError::Platform { image: image(), architecture })?;
    let bytes = origin
        .document(&reference.repository, &entry.digest, &[entry.media_type.as_str()])
        .await
        .map_err(failed("the platform's manifest"))?;
    Ok(Manifest::parse(&bytes).map_err(unusable("the platform's manifest"))?.layers)
}

/// This machine's architecture as the image specification (that is, Go) names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
