//! Manifests, indexes and configs: whole documents, believed only when their digest agrees.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, header};
use tokio::time::sleep;

use super::{
    Asker, OriginError, Shared,
    endpoint::Endpoint,
    error::Actual,
    exchange::Question,
    rounds::{Rounds, Step},
};
use crate::oci::{Algorithm, Digest, MAX_DOCUMENT_LEN, Repository};

/// What manifests are called; the order is what containerd prefers.
pub(super) const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "*/*",
];

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub digest: Digest,
    /// As the registry states it, or else as the document itself does; may be empty.
    pub media_type: String,
    pub bytes: Bytes,
}

/// One document to fetch.
pub(super) struct Wanted<'a> {
    pub(super) repository: &'a Repository,
    /// Below the repository: `manifests/latest`, `blobs/sha256:…`.
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// `None` for a tag: then the registry's own word (`Docker-Content-Digest`) must agree.
    pub(super) digest: Option<&'a Digest>,
    /// The descriptor's length, where there is one.
    pub(super) len: Option<u64>,
}

/// Fetches `wanted` from the first endpoint that has it.
pub(super) async fn fetch(shared: &Shared, wanted: &Wanted<'_>) -> Result<Document, OriginError> {
    let endpoints = shared.book.endpoints(&wanted.repository.host).await?;
    let able = |endpoint: &&Arc<Endpoint>| {
        endpoint.capabilities.pull && (endpoint.capabilities.resolve || wanted.digest.is_some())
    };
    let able: Vec<_> = endpoints.iter().filter(able).cloned().collect();
    let mut rounds = Rounds::new(able, shared.exchange.patience.clone());
    loop {
        match rounds.next(rand::random()) {
            Some(Step::Ask(endpoint)) => match Box::pin(ask(shared, &endpoint, wanted)).await {
                Ok(document) => return Ok(document),
                Err(error) => rounds.failed(error),
            },
            Some(Step::Wait(wait)) => sleep(wait).await,
            Some(Step::Over(error)) => return Err(error),
            None => {
                let why = "no host in its hosts.toml has the capability to pull and resolve".to_owned();
                return Err(OriginError::NoEndpoint { host: wanted.repository.host.clone(), why });
            }
        }
    }
}

async fn ask(shared: &Shared, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Result<Document, OriginError> {
    let _permit = shared.gates.question(endpoint).await;
    let patience = &shared.exchange.patience;
    let question = Question {
        method: Method::GET,
        repository: &wanted.repository.path,
        path: wanted.path,
        accept: wanted.accept,
        range: None,
        query: None,
        asker: &Asker::Node,
    };
    let answer = shared.exchange.ask(endpoint, &question).await?;
    if !answer.status().is_success() {
        return Err(answer.refused(patience).await);
    }
    answer.is_registrys()?;
    let at = answer.at.clone();
    if let (Some(expected), Some(stated)) = (wanted.len, answer.stated_len())
        && expected != stated
    {
        return Err(OriginError::WrongLength { at, expected, actual: Actual::Stated(stated) });
    }
    let text = |name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let stated_type = text(header::CONTENT_TYPE.as_str());
    let stated_digest = text("docker-content-digest").parse::<Digest>().ok();
    let limit = wanted.len.map_or(MAX_DOCUMENT_LEN, |len| usize::try_from(len).unwrap_or(MAX_DOCUMENT_LEN));
    let bytes = answer.read(limit.min(MAX_DOCUMENT_LEN), patience).await?;
    shared.account(bytes.len()).await;
    if let Some(expected) = wanted.len.filter(|&len| len != bytes.len() as u64) {
        return Err(OriginError::Truncated { at, expected, got: bytes.len() as u64 });
    }
    let expected = wanted.digest.cloned().or(stated_digest);
    let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let actual = Digest::of(algorithm, &bytes);
    match expected {
        Some(expected) if expected != actual => Err(OriginError::WrongDigest { at, expected, actual }),
        Some(_) | None => {
            Ok(Document { digest: actual, media_type: media_type(&stated_type, &bytes), bytes })
        }
    }
}

/// The stated type without its parameters; where it says nothing, what the document calls itself.
fn media_type(stated: &str, bytes: &[u8]) -> String {
    let stated = stated.split(';').next().unwrap_or_default().trim();
    if !matches!(stated, "" | "application/octet-stream" | "application/json" | "text/plain") {
        return stated.to_owned();
    }
    #[derive(serde::Deserialize)]
    struct Named {
        #[serde(rename = "mediaType")]
        media_type: String,
    }
    serde_json::from_slice::<Named>(bytes).map(|named| named.media_type).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_may_name_its_own_type() {
        let body = br#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#;
        assert_eq!(
            media_type("application/json; charset=utf-8", body),
            "application/vnd.oci.image.index.v1+json"
        );
        assert_eq!(media_type("application/x; q=1", body), "application/x");
        assert_eq!(media_type("", b"{}"), "");
    }
}
