//! A registry that is down: what can still be had, and what the answer says of it.

use std::time::Duration;

use http::StatusCode;
use tokio_util::task::TaskTracker;

use super::{Alone, noise, publish};
use crate::registry::{Fault, Kind, Registry};

/// A registry that is out of order for good.
const DOWN: Fault = Fault::ServerError { times: u32::MAX };

/// Access, whether tags count offline; then what becomes of digest and tag while the registry is down.
async fn while_down(access: &str, offline_tags: &str) -> (super::Got, super::Got, super::Got) {
    let registry = Registry::start().await;
    let layer = noise(600_000, 1);
    let manifest = publish(&registry, "team/app", "v1", std::slice::from_ref(&layer));
    let alone = Alone::start(|settings| {
        settings.text("mirror", "access", access).text("mirror", "offline_tags", offline_tags);
        settings.text("mirror", "tag_ttl", "0s");
    });
    // Two clients: what one was granted is not the other's.
    let path = |rest: &str| format!("/v2/team/app/{rest}?ns={}", registry.host());
    let blob = path(&format!("blobs/{}", super::digest(&layer)));
    assert_eq!(alone.get(&path("manifests/v1")).await.status, StatusCode::OK);
    assert!(alone.get(&blob).await.bytes == layer);
    registry.switch_on(DOWN);
    let other = [("authorization", "Bearer another")];
    let ask = |path: String| {
        let alone = &alone;
        async move { alone.ask(http::Method::GET, &path, &other).await }
    };
    let by_digest = ask(path(&format!("manifests/{manifest}"))).await;
    let by_tag = ask(path("manifests/v1")).await;
    (by_digest, by_tag, ask(blob).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_had_by_digest_and_the_answer_says_that_nobody_was_asked() {
    let (manifest, tag, blob) = while_down("offline-ok", "no").await;
    assert_eq!((manifest.status, blob.status, blob.whole), (StatusCode::OK, StatusCode::OK, true));
    assert!(manifest.header("warning").starts_with("111 ") && blob.header("warning").starts_with("111 "));
    assert_eq!(tag.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tag_where_the_setting_allows_it() {
    let (_, tag, _) = while_down("offline-ok", "own").await;
    assert_eq!(tag.status, StatusCode::OK);
    assert!(tag.header("warning").starts_with("110 "), "{:?}", tag.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_gone_or_moved_is_not_what_it_was_before() {
    let registry = Registry::start().await;
    let [old, new] = [4, 5].map(|seed| publish(&registry, "team/app", "v1", &[noise(1000, seed)]));
    publish(&registry, "team/app", "gone", &[noise(1000, 6)]);
    let alone = Alone::start(|settings| {
        settings.text("mirror", "offline_tags", "own").text("mirror", "tag_ttl", "0s");
    });
    let path = |tag: &str| format!("/v2/team/app/manifests/{tag}?ns={}", registry.host());
    for tag in ["v1", "gone"] {
        assert_eq!(alone.get(&path(tag)).await.status, StatusCode::OK);
    }
    registry.untag("team/app", "gone");
    assert_eq!(alone.get(&path("gone")).await.status, StatusCode::NOT_FOUND);
    // Pushed again, it is the other manifest.
    assert_ne!(publish(&registry, "team/app", "v1", &[noise(1000, 4)]), new);
    assert_eq!(alone.get(&path("v1")).await.status, StatusCode::OK);
    registry.switch_on(DOWN);
    assert_eq!(alone.get(&path("gone")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(alone.get(&path("v1")).await.header("docker-content-digest"), old.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_registrys_word_is_wanted_nothing_is_had_without_it() {
    let (manifest, tag, blob) = while_down("verify", "no").await;
    for got in [manifest, tag, blob] {
        assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_as_it_was_opens_nothing_where_the_registrys_word_is_wanted() {
    let (_, tag, _) = while_down("verify", "members").await;
    assert_eq!(tag.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_never_was_opens_nothing() {
    let registry = Registry::start().await;
    let bytes = noise(1000, 2);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|_| {});
    let path = |host: &str| format!("/v2/team/app/blobs/{name}?ns={host}");
    assert!(alone.get(&path(&registry.host())).await.bytes == bytes);
    // Nobody listens on port 1.
    assert_eq!(alone.get(&path("127.0.0.1:1")).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_answered_is_missed_after_a_restart_too() {
    let registry = Registry::start().await;
    let layer = noise(600_000, 8);
    let manifest = publish(&registry, "team/app", "v1", std::slice::from_ref(&layer));
    let mut alone = Alone::start(|_| {});
    let paths = [format!("manifests/{manifest}"), format!("blobs/{}", super::digest(&layer))]
        .map(|rest| format!("/v2/team/app/{rest}?ns={}", registry.host()));
    for path in &paths {
        assert_eq!(alone.get(path).await.status, StatusCode::OK);
    }
    alone.flotilla.stop().unwrap();
    registry.switch_on(DOWN);
    alone.flotilla.start_again().unwrap();
    alone.address = alone.flotilla.address_of("mirror").unwrap();
    for path in &paths {
        let got = alone.get(path).await;
        assert_eq!((got.status, got.whole), (StatusCode::OK, true), "{path}");
        assert!(got.header("warning").starts_with("111 "), "{:?}", got.headers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_written_into_the_settings_is_missed_after_a_restart_too() {
    let registry = Registry::start().await;
    let layer = noise(600_000, 4);
    let manifest = publish(&registry, "team/app", "v1", std::slice::from_ref(&layer));
    let host = registry.host();
    let mut alone = Alone::start(|settings| {
        settings.set("registry", "plain_http", format!("[\"127.0.0.1\", \"{host}\"]"));
        settings.text("mirror", "offline_tags", "own");
    });
    let (by_tag, by_digest) = ("manifests/v1".to_owned(), format!("manifests/{manifest}"));
    let paths = [by_tag, by_digest, format!("blobs/{}", super::digest(&layer))];
    let path = |rest: &str, host: &str| format!("/v2/team/app/{rest}?ns={host}");
    for rest in &paths {
        assert_eq!(alone.get(&path(rest, &host)).await.status, StatusCode::OK);
    }
    let metrics = alone.flotilla.get("/metrics").unwrap();
    assert!(metrics.contains("\nflotilla_pulls_in_progress 0\n"), "{metrics}");
    alone.flotilla.stop().unwrap();
    drop(registry);
    alone.flotilla.start_again().unwrap();
    alone.address = alone.flotilla.address_of("mirror").unwrap();
    for rest in &paths {
        let got = alone.get(&path(rest, &host)).await;
        assert_eq!((got.status, got.whole), (StatusCode::OK, true), "{rest}");
        let warning = if rest.ends_with("/v1") { "110 " } else { "111 " };
        assert!(got.header("warning").starts_with(warning), "{:?}", got.headers);
        // A name without a port is in the settings, this port of it is not.
        let got = alone.get(&path(rest, "127.0.0.1:1")).await;
        assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE, "{rest}");
    }
    alone.flotilla.process().unwrap().wait_for("nobody has named it and it has not answered").unwrap();
    // And by the node's operator, who needs nobody's leave.
    let pull = |named: &str| {
        let image = format!("{host}/team/app{named}");
        alone.flotilla.command(&["pull", &image]).output()
    };
    let pulled = pull(&format!("@{manifest}")).unwrap();
    assert!(pulled.status.success(), "{pulled:?}");
    let by_tag = pull(":v1").unwrap();
    let said = String::from_utf8_lossy(&by_tag.stderr);
    assert!(!by_tag.status.success() && said.contains("the registry does not say what"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_goes_away_in_the_middle_leaves_the_body_unfinished_and_the_reason_in_the_log() {
    let registry = Registry::start().await.with(Fault::Throttle { bytes_per_second: 1 << 20 });
    let bytes = noise(3 << 20, 3);
    let name = registry.put_blob("team/app", bytes.clone());
    let mut alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let address = alone.address.clone();
    let reading =
        TaskTracker::new().spawn(async move { super::ask(&address, http::Method::GET, &path, &[]).await });
    while registry.body_bytes(Kind::Blob) < 1 << 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(registry);
    let got = reading.await.unwrap();
    assert_eq!((got.status, got.len()), (StatusCode::OK, bytes.len() as u64));
    assert!(!got.whole && got.bytes.len() < bytes.len(), "{} bytes", got.bytes.len());
    assert!(bytes.starts_with(&got.bytes), "what came is the blob's");
    let why = alone.flotilla.process().unwrap().wait_for("a client's blob breaks off").unwrap();
    assert!(why.contains(&name.to_string()) && why.contains("127.0.0.1"), "{why}");
    assert!(!alone.stored(&name).exists());
}
