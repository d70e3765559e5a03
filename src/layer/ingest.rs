//! A proven blob into containerd's content store, and its file there in the place of ours.

use std::{io, path::Path};

use bytes::Bytes;
use futures_util::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::{Parts, make::Order};
use crate::{containerd::Ingest, oci::Digest, store::Blob};

/// Writes a proven blob into containerd's content store and makes containerd's copy the only one on disk. Answers
/// with the word for a metric where it fails.
pub(super) async fn ingest(
    parts: &Parts,
    order: &Order,
    lease: Option<String>,
    blob: Blob,
) -> Result<(), &'static str> {
    let digest = order.layer().descriptor.digest.clone();
    let namespace = parts.containerd.namespace(&order.namespace);
    let mut ingest = Ingest {
        r#ref: format!("flotilla-{digest}"),
        digest: digest.clone(),
        len: order.layer().descriptor.size,
        labels: order.image.blob_labels(order.index),
        lease,
    };
    let mut written = namespace.ingest(&ingest, pieces(parts, blob.clone())).await;
    if matches!(&written, Err(error) if error.lacks_lease()) {
        // The client went away and its lease with it. The next one finds the blob, unless containerd is faster.
        ingest.lease = None;
        written = namespace.ingest(&ingest, pieces(parts, blob)).await;
    }
    if let Err(error) = written {
        tracing::warn!(layer = %digest, namespace = order.namespace, error = &error as &dyn std::error::Error, "blob not written to containerd");
        return Err(error.reason());
    }
    relink(parts, &digest).await;
    Ok(())
}

/// containerd's file takes the place of ours. Failing costs disk space, not the layer.
async fn relink(parts: &Parts, digest: &Digest) {
    let root = match parts.containerd.content_root().await {
        Ok(root) => root,
        Err(error) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "containerd does not say where its blobs are"
            );
            return;
        }
    };
    let path = blob_path(&root, digest);
    let store = parts.store.clone();
    let named = digest.clone();
    let linked = tokio::task::spawn_blocking(move || store.relink(&named, &path));
    if let Err(error) = linked.await.expect("linking does not panic") {
        tracing::warn!(%digest, error = &error as &dyn std::error::Error, "two copies of a blob stay on disk");
    }
}

/// Where containerd's local content store keeps a blob.
fn blob_path(content_root: &Path, digest: &Digest) -> std::path::PathBuf {
    content_root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// The blob's pieces in order, read one ahead.
fn pieces(parts: &Parts, blob: Blob) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    parts.tasks.spawn_blocking(move || {
        for index in 0..blob.layout().count() {
            let piece = blob.read(index).map_err(io::Error::other);
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
