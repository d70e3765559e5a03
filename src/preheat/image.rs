//! What an image consists of, for one platform: read through the same pulls as everything else, so that a crowd of
//! nodes asks the registry for a manifest once.

use std::sync::Arc;

use bytes::Bytes;

use super::{Errand, Parts, Place, PreheatError};
use crate::{
    oci::{
        self, Descriptor, Digest, ImageConfig, Index, Manifest, Platform, Reference, Unhandled,
        layer_compression,
    },
    origin::{Asker, Kind, Origin, Passed},
    pull::{Here, Want},
};

/// What is asked for: every manifest and every index.
const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub digest: Digest,
    /// Bytes of the document.
    pub len: u64,
    pub is_index: bool,
}

/// Asks what `image` is.
pub(super) async fn resolve(parts: &Parts, image: &Reference, asker: &Asker) -> Result<Root, PreheatError> {
    told(parts, image, asker).await.map(|(root, _)| root)
}

/// What the registry says, which only of a digest that the node itself asks for can be known without it.
async fn told(parts: &Parts, image: &Reference, asker: &Asker) -> Result<(Root, Bytes), PreheatError> {
    match (fetch(&parts.origin, image, asker).await, &image.digest, asker) {
        (Err(PreheatError::Resolve { image: name, source }), Some(digest), Asker::Node)
            if source.is_outage() =>
        {
            let known = known(parts, image, digest).await;
            if known.is_some() {
                let why = crate::pull::chain_of(&*source);
                tracing::info!(
                    image = name,
                    "what the cluster has of it counts, its registry is down: {why}"
                );
            }
            known.ok_or(PreheatError::Resolve { image: name, source })
        }
        (answer, ..) => answer,
    }
}

/// What the cluster has under a digest.
async fn known(parts: &Parts, image: &Reference, digest: &Digest) -> Option<(Root, Bytes)> {
    let lens = match parts.pulls.here(digest) {
        Some(Here::Whole(blob)) => vec![blob.len()],
        Some(Here::Arriving(_)) | None => parts.pulls.lens_elsewhere(digest).await,
    };
    for len in lens {
        let wanted = want(image, &Asker::Node, Kind::Manifest, (digest, len));
        if let Ok(bytes) = parts.pulls.document(wanted).await {
            let is_index = Index::parse(&bytes).is_ok();
            let root = Root { digest: digest.clone(), len, is_index };
            return (is_index || Manifest::parse(&bytes).is_ok()).then_some((root, bytes));
        }
    }
    None
}

/// What the registry has under a name, or under a digest.
async fn fetch(origin: &Origin, image: &Reference, asker: &Asker) -> Result<(Root, Bytes), PreheatError> {
    let (digest, media_type, bytes) = match asker {
        Asker::Node => {
            let document = origin.resolve(image).await.map_err(|source| unread(image, source))?;
            (document.digest, document.media_type, document.bytes)
        }
        Asker::Client(_) | Asker::Lent(_) => {
            let told = origin.pass_on(&question(image, asker)).await;
            let told = told.map_err(|source| unread(image, source))?;
            let digest = told.digest.unwrap_or_else(|| Digest::of(oci::Algorithm::Sha256, &told.bytes));
            (digest, told.media_type.unwrap_or_default(), told.bytes)
        }
    };
    let is_index = oci::is_index(&media_type);
    if !is_index && !oci::is_manifest(&media_type) {
        return Err(PreheatError::MediaType { image: image.to_string(), media_type });
    }
    Ok((Root { digest, len: bytes.len() as u64, is_index }, bytes))
}

fn question(image: &Reference, asker: &Asker) -> Passed {
    let named = match (&image.digest, &image.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
    };
    Passed {
        repository: image.repository.clone(),
        method: http::Method::GET,
        path: format!("manifests/{named}"),
        query: None,
        accept: MANIFESTS.to_owned(),
        asker: asker.clone(),
        digest: image.digest.clone(),
    }
}

fn unread(image: &Reference, source: crate::origin::OriginError) -> PreheatError {
    PreheatError::Resolve { image: image.to_string(), source: Arc::new(source) }
}

/// The layers alone, for this machine's platform.
pub(super) async fn layers(
    parts: &Parts,
    image: &Reference,
    asker: &Asker,
) -> Result<Vec<Want>, PreheatError> {
    let (root, mut bytes) = told(parts, image, asker).await?;
    let is_index = root.is_index;
    let errand = Errand { image: image.clone(), root, platform: None, place: Place::Store };
    if is_index {
        let digest = in_index(&errand, &bytes)?.digest;
        let named = Reference { repository: image.repository.clone(), tag: None, digest: Some(digest) };
        bytes = told(parts, &named, asker).await?.1;
    }
    let manifest = Manifest::parse(&bytes).map_err(|source| unusable(&errand, "manifest", source))?;
    let layers = manifest.layers.into_iter().filter(is_the_registrys);
    Ok(layers.map(|layer| want(&errand.image, asker, Kind::Blob, (&layer.digest, layer.size))).collect())
}

/// The config and the layers of the image that the errand is about. Its manifests are in the store by then.
pub(super) async fn blobs(parts: &Parts, errand: &Errand, asker: &Asker) -> Result<Vec<Want>, PreheatError> {
    let Root { digest, len, is_index } = &errand.root;
    let mut bytes = document(parts, errand, asker, (digest, *len)).await?;
    if *is_index {
        let manifest = in_index(errand, &bytes)?;
        bytes = document(parts, errand, asker, (&manifest.digest, manifest.size)).await?;
    }
    let manifest = Manifest::parse(&bytes).map_err(|source| unusable(errand, "manifest", source))?;
    if let (false, Some(platform)) = (*is_index, &errand.platform) {
        is_for(parts, errand, asker, (&manifest, platform)).await?;
    }
    let mut blobs: Vec<Want> = Vec::with_capacity(manifest.layers.len() + 1);
    for blob in std::iter::once(manifest.config).chain(manifest.layers).filter(is_the_registrys) {
        if !blobs.iter().any(|known| known.digest == blob.digest) {
            blobs.push(want(&errand.image, asker, Kind::Blob, (&blob.digest, blob.size)));
        }
    }
    Ok(blobs)
}

/// The manifest of an index for the errand's platform, or for this machine's.
fn in_index(errand: &Errand, bytes: &[u8]) -> Result<Descriptor, PreheatError> {
    let index = Index::parse(bytes).map_err(|source| unusable(errand, "index", source))?;
    let platform = errand.platform.clone().unwrap_or_else(Platform::own);
    match index.manifest_for(&platform) {
        Some(manifest) => Ok(manifest.clone()),
        None => Err(not_for(errand, &platform)),
    }
}

fn not_for(errand: &Errand, platform: &Platform) -> PreheatError {
    PreheatError::Platform { image: errand.image.to_string(), platform: platform.to_string() }
}

/// An image that no index names says in its config what it runs on; an artifact says nothing, and is for everybody.
async fn is_for(
    parts: &Parts,
    errand: &Errand,
    asker: &Asker,
    (manifest, platform): (&Manifest, &Platform),
) -> Result<(), PreheatError> {
    let Descriptor { media_type, digest, size, .. } = &manifest.config;
    if !oci::is_image_config(media_type) {
        return Ok(());
    }
    let want = want(&errand.image, asker, Kind::Blob, (digest, *size));
    let bytes = parts.pulls.document(want).await.map_err(|source| PreheatError::Pull { source })?;
    let config = ImageConfig::parse(&bytes).map_err(|source| unusable(errand, "config", source))?;
    let said = config.platform();
    // Signatures are images by name and run nowhere.
    let is_silent = said.os.is_empty() && said.architecture.is_empty();
    match is_silent || platform.takes(&said) {
        true => Ok(()),
        false => Err(not_for(errand, platform)),
    }
}

/// Foreign layers lie elsewhere, and whoever runs the image fetches them there.
fn is_the_registrys(blob: &Descriptor) -> bool {
    !matches!(layer_compression(&blob.media_type), Err(Unhandled::Foreign(_)))
}

async fn document(
    parts: &Parts,
    errand: &Errand,
    asker: &Asker,
    (digest, len): (&Digest, u64),
) -> Result<Bytes, PreheatError> {
    let want = want(&errand.image, asker, Kind::Manifest, (digest, len));
    parts.pulls.document(want).await.map_err(|source| PreheatError::Pull { source })
}

fn want(image: &Reference, asker: &Asker, kind: Kind, (digest, len): (&Digest, u64)) -> Want {
    Want {
        digest: digest.clone(),
        len,
        origins: vec![image.repository.clone()],
        kind,
        asker: asker.clone(),
        image: Some(image.to_string()),
    }
}

fn unusable(errand: &Errand, what: &'static str, source: oci::DocumentError) -> PreheatError {
    PreheatError::Document { what, image: errand.image.to_string(), source }
}
