//! Pulls an image straight from its registry, for `cargo xtask bench`: a node without containerd and without Flotilla.
//!
//! ```text
//! lab_puller --into DIR 10.77.0.250:5000/bench/one:1
//! ```
//! The manifest by its tag, then config and all layers at once, each checked by SHA-256 and kept as `DIR/<hex>`.
//! Plain HTTP, as the benchmark's registry speaks it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use flotilla::oci::Manifest;
use futures_util::future::try_join_all;
use http::{Request, Response, header::ACCEPT};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sha2::{Digest as _, Sha256};

/// What the benchmark's images are.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Parser)]
struct Arguments {
    /// Where the blobs go.
    #[arg(long)]
    into: PathBuf,
    /// `host:port/repository:tag`.
    image: String,
}

type Http = Client<hyper_util::client::legacy::connect::HttpConnector, Empty<Bytes>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.into).context("making the folder for the blobs")?;
    let (host, rest) = arguments.image.split_once('/').context("an image without a registry")?;
    let (repository, tag) = rest.rsplit_once(':').context("an image without a tag")?;
    let base = format!("http://{host}/v2/{repository}");
    let client: Http = Client::builder(TokioExecutor::new()).build_http();
    let manifest = get(&client, &format!("{base}/manifests/{tag}")).await?;
    let manifest = manifest.into_body().collect().await.context("reading the manifest")?.to_bytes();
    let manifest = Manifest::parse(&manifest).context("the manifest")?;
    let blobs = manifest.layers.iter().chain([&manifest.config]);
    let fetches = blobs.map(|blob| fetch(&client, &base, blob.digest.to_string(), &arguments.into));
    try_join_all(fetches).await?;
    Ok(())
}

async fn get(client: &Http, uri: &str) -> Result<Response<Incoming>> {
    let request = Request::get(uri).header(ACCEPT, MANIFEST).body(Empty::new())?;
    let response = client.request(request).await.with_context(|| format!("GET {uri}"))?;
    ensure!(response.status().is_success(), "GET {uri}: {}", response.status());
    Ok(response)
}

async fn fetch(client: &Http, base: &str, digest: String, into: &Path) -> Result<()> {
    let mut body = get(client, &format!("{base}/blobs/{digest}")).await?.into_body();
    let hex = digest.trim_start_matches("sha256:");
    let mut file = fs::File::create(into.join(hex)).with_context(|| format!("keeping {digest}"))?;
    let mut hash = Sha256::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.with_context(|| format!("reading {digest}"))?;
        let Some(bytes) = frame.data_ref() else { continue };
        hash.update(bytes);
        file.write_all(bytes).with_context(|| format!("keeping {digest}"))?;
    }
    ensure!(hex::encode(hash.finalize()) == hex, "the registry sent other bytes than {digest}");
    Ok(())
}
