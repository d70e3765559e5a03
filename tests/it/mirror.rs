//! The mirror of a daemon without containerd, before a registry that has faults: what a client gets, whole and in parts,
//! and what the registry was asked.

mod access;
mod blobs;
mod large;
mod manifests;
mod offline;
mod proxy;
mod strangers;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use flotilla::oci::{Algorithm, Digest};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::task::TaskTracker;

use crate::{
    lab::{
        flotilla::{Flotilla, Settings},
        node::NodePlan,
        story::flotilla_program,
    },
    registry::Registry,
};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A daemon alone.
pub(crate) struct Alone {
    pub(crate) flotilla: Flotilla,
    pub(crate) address: String,
    pub(crate) dir: PathBuf,
    _place: tempfile::TempDir,
}

impl Alone {
    /// That may speak plain HTTP to loopback, with other settings as `change` makes them.
    pub(crate) fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let place = tempfile::Builder::new().prefix("flm").tempdir_in("/tmp").unwrap();
        let dir = place.path().to_owned();
        let mut settings = NodePlan::settings("alone", &dir, "127.0.0.1", &dir.join("certs.d"));
        settings.text("mesh", "listen", "127.0.0.1:0").unset("mesh", "advertise");
        settings.set("registry", "plain_http", "[\"127.0.0.1\"]");
        change(&mut settings);
        let flotilla = Flotilla::start(flotilla_program(), dir.join("flotilla"), &settings, None).unwrap();
        let address = flotilla.address_of("mirror").unwrap();
        Self { flotilla, address, dir, _place: place }
    }

    /// The file in which the store keeps a blob.
    pub(crate) fn stored(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join("flotilla/data/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Got {
        ask(&self.address, method, path, headers).await
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.ask(Method::GET, path, &[]).await
    }

    pub(crate) async fn head(&self, path: &str) -> Got {
        self.ask(Method::HEAD, path, &[]).await
    }
}

/// A CA of an operator's in two files, certificate and key.
pub(crate) fn operators_ca(dir: &Path) -> (PathBuf, PathBuf) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "the operator's CA");
    let (cert, key) = (dir.join("operator.pem"), dir.join("operator-key.pem"));
    std::fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    (cert, key)
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// What came of the body.
    pub(crate) bytes: Bytes,
    /// It ended in good order.
    pub(crate) whole: bool,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn len(&self) -> u64 {
        self.header(header::CONTENT_LENGTH.as_str()).parse().unwrap()
    }
}

pub(crate) async fn ask(address: &str, method: Method, path: &str, headers: &[(&str, &str)]) -> Got {
    let stream = TcpStream::connect(address).await.unwrap();
    ask_over(stream, method, path, &[&[("host", address)], headers].concat()).await
}

/// Asks over a connection of the caller's.
pub(crate) async fn ask_over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Got {
    send(stream, (method, path), headers, String::new()).await
}

/// Asks with a body.
pub(crate) async fn ask_with(
    address: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Got {
    let stream = TcpStream::connect(address).await.unwrap();
    send(stream, (method, path), &[&[("host", address)], headers].concat(), body).await
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    body: String,
) -> Got {
    let mut answer = open(stream, (method, path), headers, body).await;
    let mut bytes = Vec::new();
    let whole = answer.each(|part| bytes.extend_from_slice(part)).await;
    Got { status: answer.status, headers: answer.headers, bytes: bytes.into(), whole }
}

/// An answer whose body is still to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
}

impl Answer {
    /// Gives each part of the body to `take`; whether it ended in good order.
    pub(crate) async fn each(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        while let Some(part) = self.part().await {
            match part {
                Ok(part) => take(&part),
                Err(_) => return false,
            }
        }
        true
    }

    /// What comes next of the body.
    pub(crate) async fn part(&mut self) -> Option<hyper::Result<Bytes>> {
        let frame = self.body.frame().await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }
}

/// Asks, and waits for the answer's head.
pub(crate) async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    body: String,
) -> Answer {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    TaskTracker::new().spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Bytes that are no others', and do not compress.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(2) + 1;
    let byte = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(byte).collect()
}

/// An image of one config and the given layers; the manifest's digest.
pub(crate) fn publish(registry: &Registry, repository: &str, tag: &str, layers: &[Bytes]) -> Digest {
    let config = registry.put_blob(repository, format!(r#"{{"config":"{repository}:{tag}"}}"#));
    let describe = |digest: &Digest, len: usize| {
        format!(r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":{len}}}"#)
    };
    let config_len = format!(r#"{{"config":"{repository}:{tag}"}}"#).len();
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| describe(&registry.put_blob(repository, layer.clone()), layer.len()))
        .collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
        describe(&config, config_len),
        layers.join(",")
    );
    registry.put_manifest(repository, Some(tag), MANIFEST, manifest)
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// A token's life in these tests.
pub(crate) const LIFE: Duration = Duration::from_secs(300);
