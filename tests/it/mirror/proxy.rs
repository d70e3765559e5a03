//! The proxy on the mirror's port.

use std::{path::Path, sync::Arc};

use http::{Method, StatusCode};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Alone, LIFE, ask_over, noise, operators_ca};
use crate::{
    lab::registry::lead_to,
    registry::{Fault, Kind, Registry},
};

const HOST: &str = "registry.test";

/// A daemon whose proxy opens `HOST`, which is `registry` in truth, and the CA that a client trusts.
fn opening(registry: &Registry) -> (Alone, tempfile::TempDir) {
    let place = tempfile::tempdir().unwrap();
    let (cert, key) = operators_ca(place.path());
    let alone = Alone::start(|settings| {
        settings.list("mirror", "proxy_hosts", &[HOST.to_owned()]);
        settings.path("mirror", "ca_cert", &cert).path("mirror", "ca_key", &key);
    });
    lead_to(&alone.dir.join("certs.d"), HOST, &registry.host()).unwrap();
    (alone, place)
}

/// A tunnel to `target`; the status that the proxy gave.
async fn tunnel(proxy: &str, target: &str) -> (TcpStream, u16) {
    tunnel_over(TcpStream::connect(proxy).await.unwrap(), target).await
}

async fn tunnel_over<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, target: &str) -> (S, u16) {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    (stream, head.split(' ').nth(1).unwrap().parse().unwrap())
}

async fn open(alone: &Alone, ca: &Path) -> TlsStream<TcpStream> {
    let (stream, status) = tunnel(&alone.address, &format!("{HOST}:443")).await;
    assert_eq!(status, 200);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tls_of_a_listed_host_is_opened_and_its_blobs_are_pulled() {
    let registry = Registry::start().await;
    let bytes = noise(600_000, 1);
    let name = registry.put_blob("team/app", bytes.clone());
    let (alone, place) = opening(&registry);
    let ca = place.path().join("operator.pem");
    for _ in 0..2 {
        let stream = open(&alone, &ca).await;
        let path = format!("/v2/team/app/blobs/{name}");
        let got = ask_over(stream, Method::GET, &path, &[("host", HOST)]).await;
        assert!(got.status == StatusCode::OK && got.whole && got.bytes == bytes);
    }
    assert_eq!(registry.body_bytes(Kind::Blob), bytes.len() as u64, "it left the registry once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_pull_is_between_the_client_and_its_registry() {
    let registry = Registry::start().await;
    registry.switch_on(Fault::TokenAuth { user: None, identity_token: None, life: LIFE });
    let (alone, place) = opening(&registry);
    let ca = place.path().join("operator.pem");
    let ping = ask_over(open(&alone, &ca).await, Method::GET, "/v2/", &[("host", HOST)]).await;
    assert_eq!(ping.status, StatusCode::UNAUTHORIZED);
    assert!(ping.header("www-authenticate").starts_with("Bearer realm="));
    let token = ask_over(open(&alone, &ca).await, Method::GET, "/token", &[("host", HOST)]).await;
    assert!(token.status == StatusCode::OK && String::from_utf8_lossy(&token.bytes).contains("token-"));
    ask_over(open(&alone, &ca).await, Method::POST, "/v2/a/blobs/uploads/", &[("host", HOST)]).await;
    assert!(
        registry.seen().iter().any(|seen| seen.method == Method::POST && seen.path == "/v2/a/blobs/uploads/")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_host_gets_a_blind_tunnel() {
    let registry = Registry::start().await;
    let (alone, _place) = opening(&registry);
    let (stream, status) = tunnel(&alone.address, &registry.host()).await;
    assert_eq!(status, 200);
    let got = ask_over(stream, Method::GET, "/v2/", &[("host", &registry.host())]).await;
    assert_eq!((got.status, got.header("docker-distribution-api-version")), (StatusCode::OK, ""));
    let plain = TcpStream::connect(&alone.address).await.unwrap();
    let uri = format!("{}/v2/", registry.url());
    let got = ask_over(plain, Method::GET, &uri, &[("host", &registry.host())]).await;
    assert_eq!((got.status, got.header("docker-distribution-api-version")), (StatusCode::OK, ""));
    // Nobody listens on port 1.
    assert_eq!(tunnel(&alone.address, "127.0.0.1:1").await.1, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_listed_hosts_it_is_no_proxy() {
    let registry = Registry::start().await;
    let alone = Alone::start(|_| {});
    assert_eq!(tunnel(&alone.address, &registry.host()).await.1, 403);
    let plain = TcpStream::connect(&alone.address).await.unwrap();
    let uri = format!("{}/v2/", registry.url());
    let got = ask_over(plain, Method::GET, &uri, &[("host", &registry.host())]).await;
    assert_eq!(got.status, StatusCode::FORBIDDEN);
    assert!(registry.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_leads_to_the_web_and_not_to_the_node() {
    let registry = Registry::start().await;
    let (alone, _place) = opening(&registry);
    // The loopback address is named in plain_http; its name is not.
    let port = registry.address().port();
    let by_name = format!("localhost:{port}");
    for near in [&*by_name, "localhost:443", "[::1]:443", "169.254.169.254:443", "0.0.0.0:443"] {
        assert_eq!(tunnel(&alone.address, near).await.1, 502, "{near}");
    }
    // From loopback to any port of others, if there were such a host; by the socket, which may be a container's, not.
    let odd = "unlisted.invalid:5000";
    assert_eq!(tunnel(&alone.address, odd).await.1, 502);
    let socket = UnixStream::connect(alone.dir.join("flotilla/run/mirror.sock")).await.unwrap();
    assert_eq!(tunnel_over(socket, odd).await.1, 403, "no port of the web");
    let plain = TcpStream::connect(&alone.address).await.unwrap();
    let got = ask_over(plain, Method::GET, "http://localhost/", &[("host", "localhost")]).await;
    assert!(
        got.status == StatusCode::BAD_GATEWAY && String::from_utf8_lossy(&got.bytes).contains("this machine")
    );
    assert!(registry.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_count_as_connections() {
    let registry = Registry::start().await;
    let (alone, _place) = opening(&registry);
    let mut open = Vec::new();
    for _ in 0..512 {
        open.push(tunnel(&alone.address, &registry.host()).await.0);
    }
    let mut late = TcpStream::connect(&alone.address).await.unwrap();
    let refused = late.read_u8().await;
    assert!(refused.is_err(), "it is closed at once");
    drop(open);
    let answered = async {
        // Its answer comes as soon as a tunnel has noticed its end.
        while !answers(&alone.address).await {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), answered).await.unwrap();
}

async fn answers(address: &str) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let asked = stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: m\r\n\r\n").await;
    asked.is_ok() && stream.read_u8().await.is_ok()
}
