//! Manifests by tag and by digest.

use flotilla::oci::Digest;
use http::{Method, StatusCode};

use super::{Alone, MANIFEST, noise, publish};
use crate::registry::{Kind, Registry};

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_resolved_at_its_registry_once_in_a_while() {
    let registry = Registry::start().await;
    let manifest = publish(&registry, "team/app", "v1", &[noise(1000, 1)]);
    let alone = Alone::start(|settings| {
        settings.text("mirror", "tag_ttl", "1h");
    });
    let path = |what: &str| format!("/v2/team/app/manifests/{what}?ns={}", registry.host());
    let head = alone.head(&path("v1")).await;
    assert_eq!((head.status, head.header("content-type")), (StatusCode::OK, MANIFEST));
    assert_eq!(head.header("docker-content-digest"), manifest.to_string());
    let got = alone.get(&path("v1")).await;
    assert_eq!((got.bytes.len() as u64, got.header("content-type")), (head.len(), MANIFEST));
    let by_digest = alone.get(&path(&manifest.to_string())).await;
    assert!(by_digest.bytes == got.bytes && by_digest.header("content-type") == MANIFEST);

    publish(&registry, "team/app", "v1", &[noise(1000, 2)]);
    assert_eq!(alone.head(&path("v1")).await.header("docker-content-digest"), manifest.to_string());
    assert_eq!(
        registry.body_bytes(Kind::Manifest),
        got.bytes.len() as u64,
        "its bytes left the registry once"
    );
    assert!(alone.stored(&manifest).exists(), "other nodes can have it from here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_is_followed_when_its_time_is_over() {
    let registry = Registry::start().await;
    let first = publish(&registry, "team/app", "v1", &[noise(1000, 1)]);
    let alone = Alone::start(|settings| {
        settings.text("mirror", "tag_ttl", "0s");
    });
    let path = format!("/v2/team/app/manifests/v1?ns={}", registry.host());
    assert_eq!(alone.get(&path).await.header("docker-content-digest"), first.to_string());
    let second = publish(&registry, "team/app", "v1", &[noise(1000, 2)]);
    assert_eq!(alone.get(&path).await.header("docker-content-digest"), second.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_takes_is_what_the_registry_is_asked_for() {
    let registry = Registry::start().await;
    publish(&registry, "team/app", "v1", &[]);
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/manifests/v1?ns={}", registry.host());
    let accept = [("accept", "application/vnd.oci.image.index.v1+json"), ("accept", MANIFEST)];
    alone.ask(Method::GET, &path, &accept).await;
    let asked = registry.seen();
    let first = asked.iter().find(|seen| seen.kind == Kind::Manifest).unwrap();
    let both = format!("application/vnd.oci.image.index.v1+json, {MANIFEST}");
    assert_eq!(first.headers["accept"], both.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_has_not_is_not_found() {
    let registry = Registry::start().await;
    let alone = Alone::start(|_| {});
    let of = |rest: &str| format!("/v2/team/app/{rest}?ns={}", registry.host());
    let digest = super::digest(b"nothing");
    for (rest, code) in [
        ("manifests/v1".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("manifests/{digest}"), "MANIFEST_UNKNOWN"),
        (format!("blobs/{digest}"), "BLOB_UNKNOWN"),
    ] {
        let got = alone.get(&of(&rest)).await;
        assert_eq!(got.status, StatusCode::NOT_FOUND, "{rest}");
        assert!(String::from_utf8_lossy(&got.bytes).contains(code), "{rest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manifest_is_no_other_manifest_decides() {
    let registry = Registry::start().await;
    let manifest = publish(&registry, "team/app", "v1", &[noise(1000, 7)]);
    let lie = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"text/x-lie","digest":"{manifest}","size":400}}]}}"#
    );
    registry.put_manifest("other/x", Some("v1"), "application/vnd.oci.image.index.v1+json", lie.clone());
    registry.put_manifest("team/app", Some("lie"), "application/vnd.oci.image.index.v1+json", lie);
    let alone = Alone::start(|_| {});
    let path = |what: &str| format!("/v2/{what}?ns={}", registry.host());
    let by_digest = path(&format!("team/app/manifests/{manifest}"));
    assert_eq!(alone.get(&path("other/x/manifests/v1")).await.status, StatusCode::OK);
    assert_eq!(alone.head(&by_digest).await.header("content-type"), MANIFEST, "another repository");
    assert_eq!(alone.get(&path("team/app/manifests/lie")).await.status, StatusCode::OK);
    for _ in 0..2 {
        assert_eq!(alone.get(&by_digest).await.header("content-type"), MANIFEST, "its bytes say it");
        assert_eq!(alone.head(&by_digest).await.header("content-type"), MANIFEST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_a_manifest_is_told_by_its_registry() {
    let registry = Registry::start().await;
    let manifest = publish(&registry, "team/app", "v1", &[noise(1000, 8)]);
    let signature = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"application/x-signature","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"{MANIFEST}","digest":"{manifest}","size":1}}}}"#,
        registry.put_blob("team/app", "{}")
    );
    let signature = registry.put_manifest("team/app", None, MANIFEST, signature);
    let alone = Alone::start(|_| {});
    let path = |digest: &Digest| format!("/v2/team/app/referrers/{digest}?ns={}", registry.host());
    let got = alone.get(&path(&manifest)).await;
    assert_eq!(
        (got.status, got.header("content-type")),
        (StatusCode::OK, "application/vnd.oci.image.index.v1+json")
    );
    assert!(String::from_utf8_lossy(&got.bytes).contains(&signature.to_string()), "{:?}", got.bytes);
    let got = alone.get(&path(&signature)).await;
    assert!(got.status == StatusCode::OK && String::from_utf8_lossy(&got.bytes).contains("\"manifests\":[]"));
}
