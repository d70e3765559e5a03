//! Documents, blobs and ranges from a registry in good health.

use flotilla::{
    oci::{Algorithm, Digest},
    origin::OriginError,
};
use http::Method;

use super::{collect, noise, origin, pull, team_app, with_blob};
use crate::registry::{Fault, Kind, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn a_tag_becomes_a_verified_document() {
    let registry = Registry::start().await;
    let digest = registry.put_manifest("team/app", Some("v1"), MANIFEST, r#"{"schemaVersion":2}"#);
    let origin = origin();
    let reference = format!("{}/team/app:v1", registry.host()).parse().unwrap();
    let document = origin.resolve(&reference).await.unwrap();
    assert_eq!((document.digest, document.media_type.as_str()), (digest.clone(), MANIFEST));
    let bytes = origin.document(&team_app(&registry), &digest, &[MANIFEST]).await.unwrap();
    assert_eq!(bytes, document.bytes);
    assert_eq!(registry.requests(Kind::Manifest), 2);
    assert_eq!(registry.body_bytes(Kind::Manifest), 2 * bytes.len() as u64);
}

#[tokio::test]
async fn what_does_not_exist_is_said_to_be_absent_and_asked_for_once() {
    let registry = Registry::start().await;
    let reference = format!("{}/team/app:gone", registry.host()).parse().unwrap();
    let error = origin().resolve(&reference).await.unwrap_err();
    assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("/v2/team/app/manifests/gone"), "{error}");
    assert_eq!(registry.requests(Kind::Manifest), 1);
}

#[tokio::test]
async fn ranges_are_read_as_asked() {
    let (registry, digest, bytes) = with_blob(300_000).await;
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 300_000).await.unwrap();
    let body = origin.read(&located, 100_000..250_000).await.unwrap();
    assert!(body.ranged());
    assert_eq!(body.start(), 100_000);
    assert_eq!(collect(body).await.unwrap(), bytes[100_000..250_000]);
    assert_eq!(registry.body_bytes(Kind::Blob), 150_000);
    assert_eq!(registry.body_bytes_of(&format!("/v2/team/app/blobs/{digest}")), 150_000);
    let empty = origin.read(&located, 300_000..400_000).await.unwrap();
    assert_eq!(collect(empty).await.unwrap(), b"");
}

#[tokio::test]
async fn a_registry_without_ranges_sends_the_whole_blob_from_its_start() {
    let (registry, digest, bytes) = with_blob(200_000).await;
    let registry = registry.with(Fault::IgnoreRange);
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 200_000).await.unwrap();
    let body = origin.read(&located, 50_000..60_000).await.unwrap();
    assert!(!body.ranged());
    assert_eq!(body.start(), 0);
    assert_eq!(collect(body).await.unwrap(), *bytes);
}

#[tokio::test]
async fn a_registry_that_refuses_ranges_is_asked_without() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(Fault::RefuseRange);
    assert_eq!(pull(&origin(), &registry, &digest, 1000).await.unwrap(), *bytes);
}

#[tokio::test]
async fn a_registry_that_knows_no_head_tells_the_length_by_a_range() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(Fault::RefuseHead);
    assert_eq!(pull(&origin(), &registry, &digest, 1000).await.unwrap(), *bytes);
    let methods: Vec<_> = registry.seen().iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(methods, [Method::HEAD, Method::GET, Method::GET]);
}

#[tokio::test]
async fn a_blob_on_disk_is_served_like_one_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let bytes = noise(500_000);
    std::fs::write(&path, &bytes).unwrap();
    let registry = Registry::start().await;
    let (digest, len) = registry.put_file("team/app", &path).unwrap();
    assert_eq!((digest.clone(), len), (Digest::of(Algorithm::Sha256, &bytes), 500_000));
    assert_eq!(pull(&origin(), &registry, &digest, 500_000).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_config_is_whole_and_verified_or_refused() {
    let (registry, digest, bytes) = with_blob(5000).await;
    let origin = origin();
    let repository = team_app(&registry);
    assert_eq!(origin.small_blob(&repository, &digest, 5000).await.unwrap(), *bytes);
    let error = origin.small_blob(&repository, &digest, 4999).await.unwrap_err();
    assert!(matches!(error, OriginError::WrongLength { .. }), "{error}");
    let error = origin.small_blob(&repository, &digest, 9 << 20).await.unwrap_err();
    assert!(matches!(error, OriginError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn blobs_that_an_object_store_keeps_are_read_there_without_our_credentials() {
    let (registry, digest, bytes) = with_blob(100_000).await;
    let store = Registry::beside(&registry).await;
    let registry = registry.with(Fault::RedirectBlobs { to: store.url() });
    let registry = registry.with(Fault::TokenAuth {
        user: None,
        identity_token: None,
        life: std::time::Duration::from_secs(300),
    });
    assert_eq!(pull(&origin(), &registry, &digest, 100_000).await.unwrap(), *bytes);
    assert_eq!(
        (registry.body_bytes_of(&format!("/v2/team/app/blobs/{digest}")) < 1000, store.seen().len()),
        (true, 2)
    );
    assert!(registry.seen().iter().any(|seen| seen.kind == Kind::Blob && seen.carried_credentials()));
    assert!(store.seen().iter().all(|seen| !seen.carried_credentials()));
    assert!(store.seen().iter().all(|seen| seen.query == "signature=secret"));
}
