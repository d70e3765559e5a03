//! Private repositories: whose credentials go where, and who gets what.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};

use super::{Alone, LIFE, ask, noise, publish};
use crate::registry::{Fault, Kind, Registry};

fn basic(login: &str) -> String {
    format!("Basic {}", STANDARD.encode(login))
}

fn user() -> Option<(String, String)> {
    Some(("me".to_owned(), "secret".to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registrys_demand_reaches_the_client_and_its_token_the_registry() {
    let registry = Registry::start().await;
    let layer = noise(600_000, 1);
    let manifest = publish(&registry, "team/app", "v1", std::slice::from_ref(&layer));
    registry.switch_on(Fault::TokenAuth { user: user(), identity_token: None, life: LIFE });
    let alone = Alone::start(|_| {});
    let path = |rest: &str| format!("/v2/team/app/{rest}?ns={}", registry.host());

    let refused = alone.get(&path("manifests/v1")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let demand = refused.header("www-authenticate");
    assert!(demand.starts_with("Bearer realm=\"http://127.0.0.1"), "{demand}");

    // What a client does next.
    let realm = ask(&registry.host(), Method::GET, "/token", &[("authorization", &basic("me:secret"))]).await;
    let token: serde_json::Value = serde_json::from_slice(&realm.bytes).unwrap();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let with = [("authorization", bearer.as_str())];
    let got = alone.ask(Method::GET, &path("manifests/v1"), &with).await;
    assert_eq!((got.status, got.header("docker-content-digest")), (StatusCode::OK, &*manifest.to_string()));
    let blob = path(&format!("blobs/{}", super::digest(&layer)));
    let got = alone.ask(Method::GET, &blob, &with).await;
    assert!(got.status == StatusCode::OK && got.bytes == layer);

    // It is here by now, and still nobody's but his who has the token.
    for headers in [&[][..], &[("authorization", "Bearer guessed")]] {
        assert_eq!(alone.ask(Method::GET, &blob, headers).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(alone.ask(Method::HEAD, &blob, headers).await.status, StatusCode::UNAUTHORIZED);
    }
    let sent = registry.body_bytes(Kind::Blob);
    assert!(sent < 2 * layer.len() as u64, "its bytes left the registry once, beside refusals: {sent}");
    let log = std::fs::read_to_string(alone.flotilla.log()).unwrap();
    assert!(!log.contains(token["token"].as_str().unwrap()), "tokens are in no log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_remembered_for_the_same_credentials_only() {
    let registry = Registry::start().await;
    let bytes = noise(1000, 2);
    let name = registry.put_blob("team/app", bytes.clone());
    registry.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let mine = basic("me:secret");
    for _ in 0..3 {
        let got = alone.ask(Method::GET, &path, &[("authorization", &mine)]).await;
        assert!(got.status == StatusCode::OK && got.bytes == bytes);
    }
    let asked = registry.seen().iter().filter(|seen| seen.method == Method::HEAD).count();
    assert!(asked <= 2, "the grant and the pull's own look: {asked} questions");
    let other = alone.ask(Method::GET, &path, &[("authorization", &basic("you:secret"))]).await;
    assert_eq!(other.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_reads_the_registrys_own_words() {
    let registry = Registry::start().await;
    publish(&registry, "team/app", "v1", &[noise(1000, 6)]);
    registry.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/manifests/v1?ns={}", registry.host());
    let wrong = basic("me:wrong");
    let refused = alone.ask(Method::GET, &path, &[("authorization", &wrong)]).await;
    let itself = ask(&registry.host(), Method::GET, "/v2/team/app/manifests/v1", &[]).await;
    assert_eq!((refused.status, itself.status), (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED));
    assert_eq!(refused.header("www-authenticate"), itself.header("www-authenticate"));
    assert_eq!(refused.bytes, itself.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_credentials_open_nothing_to_clients() {
    let registry = Registry::start().await;
    let name = registry.put_blob("team/app", noise(1000, 3));
    registry.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("config.json");
    let auth = STANDARD.encode("me:secret");
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host());
    std::fs::write(&config, text).unwrap();
    let alone = Alone::start(|settings| {
        settings.path("registry", "docker_config", &config);
    });
    let got = alone.get(&format!("/v2/team/app/blobs/{name}?ns={}", registry.host())).await;
    assert_eq!(got.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_image_behind_tokens_for_everybody_needs_none_of_the_client() {
    let registry = Registry::start().await;
    let layer = noise(300_000, 4);
    publish(&registry, "team/app", "v1", std::slice::from_ref(&layer));
    registry.switch_on(Fault::TokenAuth { user: None, identity_token: None, life: LIFE });
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{}?ns={}", super::digest(&layer), registry.host());
    let got = alone.get(&path).await;
    assert!(got.status == StatusCode::OK && got.bytes == layer);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_knows_a_digest_may_have_it_where_the_settings_say_so() {
    let registry = Registry::start().await;
    let bytes = noise(1000, 5);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|settings| {
        settings.text("mirror", "access", "digest");
    });
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    assert!(alone.get(&path).await.bytes == bytes);
    registry.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    assert!(alone.get(&path).await.bytes == bytes, "it is here");
}
