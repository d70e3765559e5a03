//! Blobs, whole and in parts.

use std::{fs, os::unix::fs::FileExt as _, sync::Arc};

use http::{Method, StatusCode};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::{Alone, ask, digest, noise, open};
use crate::registry::{Fault, Kind, Registry};

/// Several pieces and a rest.
const LEN: usize = (1 << 20) + 12345;

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_read_once_and_given_out_whole_and_in_parts() {
    let registry = Registry::start().await;
    let bytes = noise(LEN, 1);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());

    let head = alone.head(&path).await;
    assert_eq!((head.status, head.len()), (StatusCode::OK, LEN as u64));
    assert_eq!(head.header("docker-content-digest"), name.to_string());
    let got = alone.get(&path).await;
    assert_eq!((got.status, got.whole), (StatusCode::OK, true));
    assert!(got.bytes == bytes);
    for (range, wanted) in [
        ("bytes=0-0", 0..1),
        ("bytes=262143-262144", 262_143..262_145),
        ("bytes=300000-", 300_000..LEN),
        ("bytes=-7", LEN - 7..LEN),
        ("bytes=5-99999999", 5..LEN),
    ] {
        let got = alone.ask(Method::GET, &path, &[("range", range)]).await;
        assert_eq!(got.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert!(got.bytes == bytes.slice(wanted.clone()), "{range}");
        let content_range = format!("bytes {}-{}/{LEN}", wanted.start, wanted.end - 1);
        assert_eq!(got.header("content-range"), content_range);
    }
    let behind = alone.ask(Method::GET, &path, &[("range", &format!("bytes={LEN}-"))]).await;
    assert_eq!(behind.status, StatusCode::RANGE_NOT_SATISFIABLE);
    let prefixed = alone.get(&format!("/v2/{}/team/app/blobs/{name}", registry.host())).await;
    assert!(prefixed.bytes == bytes);
    assert_eq!(registry.body_bytes(Kind::Blob), LEN as u64, "it left the registry once");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_no_and_of_one_byte() {
    let registry = Registry::start().await;
    let alone = Alone::start(|_| {});
    for bytes in ["", "x"] {
        let name = registry.put_blob("team/app", bytes);
        let got = alone.get(&format!("/v2/team/app/blobs/{name}?ns={}", registry.host())).await;
        assert_eq!((got.status, got.whole, &*got.bytes), (StatusCode::OK, true, bytes.as_bytes()));
        assert_eq!(got.len(), bytes.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_cost_the_registry_one_blob() {
    let registry = Registry::start().await.with(Fault::Throttle { bytes_per_second: 4 << 20 });
    let bytes = noise(LEN, 2);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Arc::new(Alone::start(|_| {}));
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let (alone, path) = (alone.clone(), path.clone());
            TaskTracker::new().spawn(async move { alone.get(&path).await })
        })
        .collect();
    for client in clients {
        let got = client.await.unwrap();
        assert!(got.status == StatusCode::OK && got.whole && got.bytes == bytes);
    }
    assert_eq!(registry.body_bytes(Kind::Blob), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_breaks_goes_on_by_a_range_while_the_blob_arrives() {
    let registry = Registry::start().await.with(Fault::Throttle { bytes_per_second: 1 << 20 });
    let len = 4 << 20;
    let bytes = noise(len, 7);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let mut begun = Vec::new();
    for cut in [100_000, 900_000] {
        let stream = TcpStream::connect(&alone.address).await.unwrap();
        let range = format!("bytes={}-", begun.len());
        let headers = [("host", &*alone.address), ("range", &*range)];
        let headers = if begun.is_empty() { &headers[..1] } else { &headers[..] };
        let mut answer = open(stream, (Method::GET, &path), headers, String::new()).await;
        assert!(answer.status.is_success(), "{}", answer.status);
        while begun.len() < cut {
            begun.extend_from_slice(&answer.part().await.unwrap().unwrap());
        }
        drop(answer);
        assert!(registry.body_bytes(Kind::Blob) < len as u64, "it is cut in the middle");
    }
    let range = format!("bytes={}-", begun.len());
    let rest = alone.ask(Method::GET, &path, &[("range", &range)]).await;
    assert_eq!((rest.status, rest.whole), (StatusCode::PARTIAL_CONTENT, true));
    assert!([&begun[..], &rest.bytes].concat() == bytes);
    assert_eq!(registry.body_bytes(Kind::Blob), len as u64, "each byte left the registry once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_nothing_of_cuts_between_mirror_and_registry() {
    let registry = Registry::start().await.with(Fault::Truncate { after: 300_000, times: 2 });
    let bytes = noise(LEN, 3);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let got = alone.get(&path).await;
    assert!(got.whole && got.bytes == bytes, "the registry's cuts are not the client's");
    let rest = alone.ask(Method::GET, &path, &[("range", "bytes=700000-")]).await;
    assert!(rest.whole && rest.bytes == bytes.slice(700_000..));
    assert_eq!(registry.body_bytes(Kind::Blob), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_what_it_should_be_never_ends_in_good_order() {
    for (len, seed) in [(LEN, 4), (1000, 5)] {
        let registry = Registry::start().await.with(Fault::WrongBytes);
        let name = registry.put_blob("team/app", noise(len, seed));
        let alone = Alone::start(|_| {});
        let got = alone.get(&format!("/v2/team/app/blobs/{name}?ns={}", registry.host())).await;
        let finished = got.status.is_success() && got.whole;
        assert!(!finished, "{len} bytes: {} with {} bytes", got.status, got.bytes.len());
        assert!(!alone.stored(&name).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_in_the_own_store_costs_no_client_a_wrong_byte() {
    let registry = Registry::start().await;
    let bytes = noise(LEN, 6);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|_| {});
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    assert!(alone.get(&path).await.bytes == bytes);
    let file = fs::OpenOptions::new().write(true).open(alone.stored(&name)).unwrap();
    file.write_all_at(b"rot", 700_000).unwrap();
    let got = alone.get(&path).await;
    assert!(got.whole && got.bytes == bytes, "the pull succeeds in spite of the rot");
    assert_eq!(registry.body_bytes(Kind::Blob), 2 * LEN as u64, "it was fetched again");
    assert!(alone.get(&path).await.bytes == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_the_same_door() {
    let registry = Registry::start().await;
    let name = registry.put_blob("team/app", "by socket");
    let alone = Alone::start(|_| {});
    let socket = alone.dir.join("flotilla/run/mirror.sock");
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    TaskTracker::new().spawn(connection);
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let request = http::Request::get(path).header("host", "mirror").body(String::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_pull_is_refused() {
    let alone = Alone::start(|_| {});
    let digest = digest(b"");
    for (method, path, status) in [
        (Method::GET, "/v2/".to_owned(), StatusCode::OK),
        (Method::POST, "/v2/a/blobs/uploads/".to_owned(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::DELETE, format!("/v2/a/manifests/{digest}"), StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/v2/a/blobs/sha256:1".to_owned(), StatusCode::BAD_REQUEST),
        (Method::GET, "/".to_owned(), StatusCode::NOT_FOUND),
    ] {
        let got = ask(&alone.address, method.clone(), &path, &[]).await;
        assert_eq!(got.status, status, "{method} {path}");
        assert_eq!(got.header("docker-distribution-api-version"), "registry/2.0");
    }
    let circle = alone.ask(Method::GET, "/v2/a/manifests/v1", &[("user-agent", "flotilla/0.1.0")]).await;
    assert_eq!(circle.status, StatusCode::LOOP_DETECTED);
}
