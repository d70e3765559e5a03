//! Registries that are not each other's friends: whose credentials and whose bytes go where.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use tokio_util::task::TaskTracker;

use super::{Alone, MANIFEST, digest, noise, publish};
use crate::{
    lab::registry::lead_to,
    registry::{Fault, Registry},
};

/// A blob that takes no longer than this is waited for by nobody.
const SOON: Duration = Duration::from_secs(60);
const LEN: usize = 900_000;

fn basic(login: &str) -> String {
    format!("Basic {}", STANDARD.encode(login))
}

/// A daemon for which every host is `stranger`, but `friend`, if there is one.
fn before(stranger: &Registry, friend: Option<&Registry>) -> Alone {
    let alone = Alone::start(|_| {});
    let hosts_dir = alone.dir.join("certs.d");
    lead_to(&hosts_dir, "_default", &stranger.host()).unwrap();
    if let Some(friend) = friend {
        lead_to(&hosts_dir, &friend.host(), &friend.host()).unwrap();
    }
    alone
}

fn showed(registry: &Registry, authorization: &str) -> bool {
    registry.seen().iter().any(|seen| seen.headers.get("authorization").is_some_and(|a| a == authorization))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_two_registries_that_want_one_blob_show_each_his_own_pass() {
    let (slow, fast) = (Registry::start().await, Registry::start().await);
    let bytes = noise(LEN, 1);
    let name = slow.put_blob("team/a", bytes.clone());
    fast.put_blob("team/b", bytes.clone());
    for (registry, user) in [(&slow, "a"), (&fast, "b")] {
        registry.switch_on(Fault::BasicAuth { user: user.into(), password: "secret".into() });
    }
    slow.switch_on(Fault::Stall { after: 1000, times: u32::MAX });
    let alone = Alone::start(|_| {});
    let of = |registry: &Registry, repository: &str, user: &str| {
        let path = format!("/v2/{repository}/blobs/{name}?ns={}", registry.host());
        (path, basic(&format!("{user}:secret")), alone.address.clone())
    };
    let (path, pass, address) = of(&slow, "team/a", "a");
    let first = TaskTracker::new()
        .spawn(async move { super::ask(&address, Method::GET, &path, &[("authorization", &pass)]).await });
    while !slow.seen().iter().any(|seen| seen.method == Method::GET) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (path, pass, address) = of(&fast, "team/b", "b");
    let with_pass = [("authorization", pass.as_str())];
    let second = super::ask(&address, Method::GET, &path, &with_pass);
    let second = tokio::time::timeout(SOON, second).await.expect("its own registry has it");
    assert!(second.status == StatusCode::OK && second.whole && second.bytes == bytes);
    let first = tokio::time::timeout(SOON, first).await.unwrap().unwrap();
    assert!(first.whole && first.bytes == bytes, "what is here is for both");
    assert!(showed(&slow, &basic("a:secret")) && showed(&fast, &basic("b:secret")));
    assert!(!showed(&slow, &basic("b:secret")) && !showed(&fast, &basic("a:secret")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_nobody_named_opens_nothing_that_is_here() {
    let (registry, stranger) = (Registry::start().await, Registry::start().await);
    let bytes = noise(LEN, 2);
    let name = registry.put_blob("team/app", bytes.clone());
    registry.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    // It says that it has the blob, of the right length, and that everybody may have it.
    stranger.put_blob("x", bytes.clone());
    stranger.switch_on(Fault::WrongBytes);
    let alone = before(&stranger, Some(&registry));
    let own = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let mine = [("authorization", &*basic("me:secret"))];
    assert!(alone.ask(Method::GET, &own, &mine).await.bytes == bytes);
    for path in [format!("/v2/x/blobs/{name}?ns=evil.test"), format!("/v2/evil.test/x/blobs/{name}")] {
        let got = alone.get(&path).await;
        assert_eq!((got.status, got.len()), (StatusCode::OK, LEN as u64));
        assert!(
            !got.whole && got.bytes[0] != bytes[0],
            "what the stranger sends, which never ends in good order"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_nobody_named_spoils_no_blob_of_others() {
    for fault in [Fault::Stall { after: 1000, times: u32::MAX }, Fault::WrongBytes, Fault::Longer { by: 7 }] {
        let (registry, stranger) = (Registry::start().await, Registry::start().await.with(fault.clone()));
        let bytes = noise(LEN, 3);
        let name = registry.put_blob("team/app", bytes.clone());
        stranger.put_blob("x", bytes.clone());
        let alone = before(&stranger, Some(&registry));
        let (address, path) = (alone.address.clone(), format!("/v2/x/blobs/{name}?ns=evil.test"));
        let stalled =
            TaskTracker::new().spawn(async move { super::ask(&address, Method::GET, &path, &[]).await });
        while !stranger.seen().iter().any(|seen| seen.method == Method::GET) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
        let got = tokio::time::timeout(SOON, alone.get(&path)).await.expect("nobody is in its way");
        assert!(got.status == StatusCode::OK && got.whole && got.bytes == bytes, "{fault:?}");
        stalled.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_nobody_named_is_passed_on_as_it_is() {
    let stranger = Registry::start().await;
    let layer = noise(LEN, 4);
    let manifest = publish(&stranger, "team/app", "v1", std::slice::from_ref(&layer));
    stranger.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    let store = Registry::beside(&stranger).await;
    let alone = before(&stranger, None);
    let path = |what: &str| format!("/v2/team/app/{what}?ns=r.test");
    let refused = alone.get(&path("manifests/v1")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.header("www-authenticate"), "Basic realm=\"test\"");
    let mine = [("authorization", &*basic("me:secret")), ("range", "bytes=100-199")];
    let got = alone.ask(Method::HEAD, &path("manifests/v1"), &mine[..1]).await;
    assert_eq!(
        (got.header("content-type"), got.header("docker-content-digest")),
        (MANIFEST, &*manifest.to_string())
    );
    let blob = path(&format!("blobs/{}", digest(&layer)));
    let got = alone.ask(Method::GET, &blob, &mine[..1]).await;
    assert!(got.status == StatusCode::OK && got.whole && got.bytes == layer);
    let got = alone.ask(Method::GET, &blob, &mine).await;
    assert!(got.status == StatusCode::PARTIAL_CONTENT && got.bytes == layer.slice(100..200));
    stranger.switch_on(Fault::RedirectBlobs { to: store.url() });
    let got = alone.ask(Method::GET, &blob, &mine[..1]).await;
    assert!(got.status == StatusCode::TEMPORARY_REDIRECT && got.header("location").starts_with(&store.url()));
    assert!(!alone.stored(&digest(&layer)).exists(), "nothing of it is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_no_blob_has_is_refused() {
    let registry = Registry::start().await.with(Fault::Longer { by: u64::MAX });
    let name = registry.put_blob("team/app", noise(1000, 5));
    let other = Registry::start().await;
    let good = other.put_blob("team/app", noise(1000, 6));
    let alone = Alone::start(|_| {});
    for range in ["bytes=0-", "bytes=18446744073709551000-"] {
        let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
        let got = alone.ask(Method::GET, &path, &[("range", range)]).await;
        assert_eq!(got.status, StatusCode::BAD_GATEWAY, "{range}");
    }
    let path = format!("/v2/team/app/blobs/{good}?ns={}", other.host());
    assert_eq!(alone.get(&path).await.status, StatusCode::OK, "others go on");
}
