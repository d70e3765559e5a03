//! Manifests, indexes and configs: small blobs that somebody wants to read whole, at once.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use super::{Pull, PullError, Pulls, Want};
use crate::{oci::MAX_DOCUMENT_LEN, store::ReadError};

/// How long a document may take from mesh and registry together, before whoever waits is told to go elsewhere.
const DOCUMENT_MAX: Duration = Duration::from_secs(30);

impl Pulls {
    /// All bytes of a document: from here, from the mesh, from its registry.
    ///
    /// # Errors
    /// The pull failed, took too long, or the document is larger than any should be.
    pub async fn document(&self, want: Want) -> Result<Bytes, Arc<PullError>> {
        if want.len > MAX_DOCUMENT_LEN as u64 {
            let reason = format!("{} bytes are more than a manifest has", want.len);
            return Err(PullError::Swarm { digest: want.digest, reason }.into());
        }
        match whole(&self.start(want.clone())).await {
            // Its copy here has rotted, and is gone: another one comes.
            Err(why) if matches!(&*why, PullError::Read { source: ReadError::Rotten { .. } }) => {
                whole(&self.start(want)).await
            }
            other => other,
        }
    }
}

async fn whole(pull: &Pull) -> Result<Bytes, Arc<PullError>> {
    let late = || PullError::Swarm {
        digest: pull.digest().clone(),
        reason: format!("nothing for {DOCUMENT_MAX:?}"),
    };
    let proven = tokio::time::timeout(DOCUMENT_MAX, pull.proven()).await;
    let blob = proven.map_err(|_| Arc::new(late()))??;
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = BytesMut::new();
        for index in 0..blob.layout().count() {
            bytes.extend_from_slice(&blob.read(index)?);
        }
        Ok(bytes.freeze())
    });
    let read = reading.await.expect("reading a blob does not panic");
    read.map_err(|source| Arc::new(PullError::Read { source }))
}
