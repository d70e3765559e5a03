//! Preheating over HTTP, at a daemon without containerd: who is let in, and what Harbor sends.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    mirror::{Alone, Got, ask_with, noise, publish},
    registry::{Fault, Kind, Registry},
};

/// Ends a test that would hang.
const GUARD: Duration = Duration::from_secs(60);

/// A daemon that takes orders over HTTP.
struct Ordered {
    alone: Alone,
    admin: String,
    token: PathBuf,
}

impl Ordered {
    fn start() -> Self {
        let place = tempfile::Builder::new().prefix("flt").tempdir_in("/tmp").unwrap().keep();
        let token = place.join("token");
        std::fs::write(&token, "open sesame\n").unwrap();
        let alone = Alone::start(|settings| {
            settings.path("admin", "token_file", &token);
        });
        let admin = alone.flotilla.address_of("admin").unwrap();
        Self { alone, admin, token }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Got {
        self.ask_as("Bearer open sesame", method, path, body).await
    }

    async fn ask_as(&self, authorization: &str, method: Method, path: &str, body: Option<&Value>) -> Got {
        let headers = [("authorization", authorization), ("content-type", "application/json")];
        let body = body.map(Value::to_string).unwrap_or_default();
        ask_with(&self.admin, method, path, &headers, body).await
    }

    /// What Harbor is told of an order, once it has ended.
    async fn ended(&self, path: &str, field: &str, going: &str) -> Value {
        let asking = async {
            loop {
                let told = json(&self.ask(Method::GET, path, None).await);
                if told[field] != going {
                    return told;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GUARD, asking).await.expect("the order ends")
    }

    fn blobs(&self) -> u64 {
        let status: Value = serde_json::from_str(&self.alone.flotilla.status().unwrap()).unwrap();
        status["store"]["blobs"].as_u64().unwrap()
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.token.parent().unwrap()).unwrap();
    }
}

fn json(got: &Got) -> Value {
    assert_eq!(got.status, StatusCode::OK, "{:?}", got.bytes);
    serde_json::from_slice(&got.bytes).unwrap()
}

/// Lines of JSON.
fn lines(got: &Got) -> Vec<Value> {
    assert_eq!(got.status, StatusCode::OK, "{:?}", got.bytes);
    let text = std::str::from_utf8(&got.bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whoever_has_the_token_may_order() {
    let registry = Registry::start().await;
    publish(&registry, "team/app", "v1", &[noise(300_000, 1)]);
    let node = Ordered::start();
    let path = format!("/v1/preheat?image={}/team/app:v1", registry.host());
    for wrong in ["Bearer open", "Bearer open sesame please", "Basic b3BlbiBzZXNhbWU=", "open sesame"] {
        let refused = node.ask_as(wrong, Method::POST, &path, None).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{wrong}");
        assert!(refused.header("www-authenticate").starts_with("Bearer"));
    }
    assert_eq!(node.blobs(), 0);
    let said = lines(&node.ask(Method::POST, &path, None).await);
    assert_eq!(said[0]["image"]["nodes"], json!(["alone"]));
    let [.., last, summary] = &said[..] else { panic!("{said:?}") };
    assert_eq!(last["node"]["state"], "done", "{said:?}");
    assert_eq!(summary, &json!({ "summary": { "nodes": 1, "done": 1, "failed": 0 } }));
    // Manifest, config, layer.
    assert_eq!(node.blobs(), 3);

    // Another token counts at once, and none lets nobody in.
    std::fs::write(&node.token, "another").unwrap();
    assert_eq!(node.ask(Method::POST, &path, None).await.status, StatusCode::UNAUTHORIZED);
    std::fs::write(&node.token, "\n").unwrap();
    let broken = node.ask_as("Bearer ", Method::POST, &path, None).await;
    assert_eq!(broken.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_file_orders_over_http_are_off_and_say_so() {
    let alone = Alone::start(|_| {});
    let admin = alone.flotilla.address_of("admin").unwrap();
    for (method, path) in
        [(Method::POST, "/v1/preheat?image=a"), (Method::GET, "/healthy"), (Method::POST, "/preheats")]
    {
        let got = ask_with(&admin, method, path, &[("authorization", "Bearer x")], String::new()).await;
        assert_eq!(got.status, StatusCode::FORBIDDEN, "{path}");
        assert!(String::from_utf8_lossy(&got.bytes).contains("admin.token_file"), "{:?}", got.bytes);
    }
    assert_eq!(ask_with(&admin, Method::GET, "/healthz", &[], String::new()).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_its_reason() {
    let registry = Registry::start().await;
    publish(&registry, "team/app", "v1", &[noise(1000, 2)]);
    let node = Ordered::start();
    let host = registry.host();
    for (query, status, says) in [
        (format!("image={host}/team/app:v1&nodes=n7"), StatusCode::NOT_FOUND, "`n7`"),
        (format!("image={host}/team/app:v1&nodes=rack%3D1"), StatusCode::BAD_REQUEST, "`rack=1`"),
        (format!("image={host}/team/app:v1&platform=amd64"), StatusCode::BAD_REQUEST, "no platform"),
        (format!("image={host}/team/app:v1&into=docker"), StatusCode::BAD_REQUEST, "`docker`"),
        (format!("image={host}/a//b"), StatusCode::BAD_REQUEST, "reference"),
        (format!("image={host}/team/app:none"), StatusCode::BAD_GATEWAY, "not found"),
    ] {
        let got = node.ask(Method::POST, &format!("/v1/preheat?{query}"), None).await;
        let said = String::from_utf8_lossy(&got.bytes).into_owned();
        assert!(got.status == status && said.contains(says), "{query}: {} {said}", got.status);
    }
    let into = format!("/v1/preheat?image={host}/team/app:v1&into=containerd");
    let said = lines(&node.ask(Method::POST, &into, None).await);
    let [.., last, summary] = &said[..] else { panic!("{said:?}") };
    assert_eq!((&last["node"]["state"], &summary["summary"]["failed"]), (&json!("failed"), &json!(1)));
    let last = &last["node"];
    assert!(last["reason"].as_str().unwrap().contains("containerd cannot be reached"), "{last}");
}

/// As Harbor 2.12 and later sends it: `POST /oapi/v1/jobs`, with a token for a private project.
#[tokio::test(flavor = "multi_thread")]
async fn harbor_preheats_a_private_image_with_its_own_credentials() {
    let registry = Registry::start().await;
    publish(&registry, "team/app", "v1", &[noise(700_000, 3), noise(10, 4)]);
    registry.switch_on(Fault::BasicAuth { user: "robot".into(), password: "secret".into() });
    let node = Ordered::start();
    assert_eq!(node.ask(Method::GET, "/healthy", None).await.status, StatusCode::OK);
    let credentials = format!("Basic {}", STANDARD.encode("robot:secret"));
    let order = |headers: Value| {
        json!({
            "type": "preheat",
            "args": {
                "type": "image", "url": format!("{}/v2/team/app/manifests/v1", registry.url()), "tag": "",
                "filtered_query_params": "", "headers": headers, "scope": "single_peer",
                "concurrent_count": 0, "timeout": 0,
            },
            "scheduler_cluster_ids": null,
        })
    };
    let begun = json(
        &node.ask(Method::POST, "/oapi/v1/jobs", Some(&order(json!({ "Authorization": credentials })))).await,
    );
    assert!(begun["created_at"].as_str().unwrap().contains('T'), "{begun}");
    let path = format!("/oapi/v1/jobs/{}", begun["id"]);
    let told = node.ended(&path, "state", "PENDING").await;
    assert_eq!(told["state"], "SUCCESS", "{told}");
    assert_eq!(node.blobs(), 4);
    assert!(registry.requests(Kind::Blob) > 0);
    let log = std::fs::read_to_string(node.alone.flotilla.log()).unwrap();
    assert!(!log.contains("secret") && !log.contains(&credentials[6..]), "credentials are in no log");

    // Without them Harbor is told that it failed, where and why.
    let begun = json(&node.ask(Method::POST, "/oapi/v1/jobs", Some(&order(json!({})))).await);
    let told = node.ended(&format!("/oapi/v1/jobs/{}", begun["id"]), "state", "PENDING").await;
    assert_eq!(told["state"], "FAILURE");
    assert!(told["result"]["job_states"][0]["error"].as_str().unwrap().contains("401"), "{told}");
    assert_eq!(node.ask(Method::GET, "/oapi/v1/jobs/77", None).await.status, StatusCode::NOT_FOUND);
}

/// As Harbor before 2.12 sends it: `POST /preheats`.
#[tokio::test(flavor = "multi_thread")]
async fn harbor_of_old_preheats() {
    let registry = Registry::start().await;
    let manifest = publish(&registry, "team/app", "v1", &[noise(100_000, 5)]);
    let node = Ordered::start();
    assert_eq!(node.ask(Method::GET, "/_ping", None).await.status, StatusCode::OK);
    let order = |kind: &str, digest: String| {
        json!({
            "type": kind, "url": format!("{}/v2/team/app/manifests/v1", registry.url()), "headers": {},
            "image": "team/app", "tag": "v1", "digest": digest,
        })
    };
    let begun = json(&node.ask(Method::POST, "/preheats", Some(&order("image", manifest.to_string()))).await);
    let path = format!("/preheats/{}", begun["ID"].as_str().unwrap());
    let told = node.ended(&path, "Status", "RUNNING").await;
    assert_eq!((&told["Status"], &told["errorMsg"]), (&json!("SUCCESS"), &json!("")), "{told}");
    assert!(!told["finishTime"].as_str().unwrap().is_empty());
    assert_eq!(node.blobs(), 3);
    for bad in [order("file", String::new()), order("image", "sha256:12".into())] {
        assert_eq!(node.ask(Method::POST, "/preheats", Some(&bad)).await.status, StatusCode::BAD_REQUEST);
    }
}
