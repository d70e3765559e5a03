//! The client against Docker's own registry, where Debian's `docker-registry` is installed.

use std::process::Stdio;

use bytes::Bytes;
use flotilla::oci::{Algorithm, Digest, Repository};
use http::{Method, Request, header};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{collect, noise, origin};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry on a free port, and its host; `None` where it is not installed.
async fn docker_registry(dir: &std::path::Path) -> Option<(Child, String)> {
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: info, formatter: json}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n",
        dir.join("data").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, address)) = line.split_once("listening on ") {
            let host = address.split('"').next().unwrap().to_owned();
            // Kept open: a registry that cannot write its log dies of it.
            child.stderr = Some(lines.into_inner().into_inner());
            return Some((child, host));
        }
    }
    panic!("docker-registry ended before it listened");
}

struct Pusher {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Pusher {
    async fn send(&self, method: Method, url: &str, media_type: &str, body: &[u8]) -> Option<String> {
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, media_type)
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        let response = self.client.request(request).await.unwrap();
        assert!(response.status().is_success(), "{url}: {}", response.status());
        Some(response.headers().get(header::LOCATION)?.to_str().unwrap().to_owned())
    }

    async fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let uploads = format!("{}/blobs/uploads/", self.base);
        let at = self.send(Method::POST, &uploads, "application/octet-stream", b"").await.unwrap();
        let joint = if at.contains('?') { '&' } else { '?' };
        let put = format!("{at}{joint}digest={digest}");
        self.send(Method::PUT, &put, "application/octet-stream", bytes).await;
        digest
    }
}

#[tokio::test]
async fn dockers_registry_is_read_like_ours() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_child, host)) = docker_registry(dir.path()).await else {
        eprintln!("skipped: docker-registry is not installed (apt-get install docker-registry)");
        return;
    };
    let client = Client::builder(TokioExecutor::new()).build_http();
    let pusher = Pusher { client, base: format!("http://{host}/v2/team/app") };
    let (config, layer) = (b"{}".as_slice(), noise(3_000_000));
    let (config_digest, layer_digest) = (pusher.blob(config).await, pusher.blob(&layer).await);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":3000000}}]}}"#
    );
    let tag = format!("{}/manifests/v1", pusher.base);
    pusher.send(Method::PUT, &tag, MANIFEST, manifest.as_bytes()).await;

    let origin = origin();
    let document = origin.resolve(&format!("{host}/team/app:v1").parse().unwrap()).await.unwrap();
    assert_eq!((document.media_type.as_str(), &document.bytes[..]), (MANIFEST, manifest.as_bytes()));
    let repository = Repository { host, path: "team/app".into() };
    assert_eq!(origin.document(&repository, &document.digest, &[]).await.unwrap(), document.bytes);
    assert_eq!(origin.small_blob(&repository, &config_digest, 2).await.unwrap(), config);
    let located = origin.locate(std::slice::from_ref(&repository), &layer_digest, 3_000_000).await.unwrap();
    let body = origin.read(&located, 1_000_000..3_000_000).await.unwrap();
    assert!(body.ranged());
    assert_eq!(collect(body).await.unwrap(), layer[1_000_000..]);
    let absent = Digest::of(Algorithm::Sha256, b"absent");
    assert_eq!(origin.locate(&[repository], &absent, 6).await.unwrap_err().reason(), "no_origin");
}
