//! What is no ordinary image, by real clients before the mirror: artifacts, blobs of no and of one byte, an index for
//! several platforms, schema 2 and its lists.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    lab::{
        Lab,
        image::{Blob, Compression, Images},
        node::Node,
        samples, tool,
    },
    real_docker::Dockerd,
    real_mirror::{REGISTRY, has, install, mirror, say, told_of},
};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Something in the lab's registry: its name, and the digests of all that a client copies.
struct Content {
    name: String,
    blobs: Vec<Blob>,
    manifests: Vec<Blob>,
}

#[test]
fn artifacts_and_blobs_of_no_and_one_byte() {
    let artifact = |images: &Images| {
        let config = images.blob("application/vnd.oci.empty.v1+json", b"{}").unwrap();
        let files = [&b""[..], b"x", &[7; 300_000]];
        let blobs = files.map(|bytes| images.blob("application/vnd.lab.file", bytes).unwrap());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.lab.thing",
            "config": config.descriptor(), "layers": blobs.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        publish(images, "demo/thing:v1", &manifest, &[&blobs[..], &[config]].concat(), &[])
    };
    told(artifact, |lab, node, thing| {
        by_oras(lab, node, thing);
        by_regctl(lab, node, thing);
        by_crane(lab, node, thing);
    });
}

#[test]
fn an_index_for_several_platforms() {
    told(
        |images| several(images, "demo/several:v1", (OCI_INDEX, OCI_MANIFEST)),
        |lab, node, several| {
            by_skopeo(lab, node, several);
            by_oras(lab, node, several);
            by_regctl(lab, node, several);
            by_crane(lab, node, several);
        },
    );
}

#[test]
fn schema_2_and_its_lists() {
    told(
        |images| several(images, "demo/old:v1", (DOCKER_LIST, DOCKER_MANIFEST)),
        |lab, node, several| {
            by_skopeo(lab, node, several);
            by_regctl(lab, node, several);
            by_docker(lab, node, several);
        },
    );
}

/// The same layers for this machine and for one that is nowhere, under one name.
fn several(images: &Images, name: &str, (index_type, manifest_type): (&str, &str)) -> Content {
    let (own, other) = if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") };
    let layer_type = match manifest_type {
        DOCKER_MANIFEST => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        _ => "application/vnd.oci.image.layer.v1.tar+gzip",
    };
    let config_type = match manifest_type {
        DOCKER_MANIFEST => "application/vnd.docker.container.image.v1+json",
        _ => "application/vnd.oci.image.config.v1+json",
    };
    let busybox = samples::busybox(images, Compression::Gzip).unwrap();
    let noise = samples::noise(images, 400_000, 91).unwrap();
    let (mut blobs, mut manifests, mut entries) =
        (vec![busybox.blob.clone(), noise.blob.clone()], vec![], vec![]);
    for architecture in [own, other] {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": [busybox.diff_id, noise.diff_id] },
        });
        let config = images.blob(config_type, config.to_string().as_bytes()).unwrap();
        let layer =
            |blob: &Blob| json!({ "mediaType": layer_type, "digest": blob.digest, "size": blob.size });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type, "config": config.descriptor(),
            "layers": [layer(&busybox.blob), layer(&noise.blob)],
        });
        let part =
            publish(images, &format!("{name}-{architecture}"), &manifest, std::slice::from_ref(&config), &[]);
        let mut entry = part.manifests[0].descriptor();
        entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
        entries.push(entry);
        manifests.push(part.manifests[0].clone());
        blobs.push(config);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": entries });
    publish(images, name, &index, &blobs, &manifests)
}

fn publish(images: &Images, name: &str, document: &Value, blobs: &[Blob], below: &[Blob]) -> Content {
    let digests: Vec<&str> = blobs.iter().map(|blob| blob.digest.as_str()).collect();
    let document = images.publish_manifest(name, document, &digests).unwrap();
    let manifests = [&[document][..], below].concat();
    Content { name: name.to_owned(), blobs: blobs.to_vec(), manifests }
}

/// What is told of some content ends with each blob having left the registry once, whatever the number of clients.
fn told(make: impl Fn(&Images) -> Content, story: impl Fn(&Lab, &Node, &Content)) {
    told_of(make, |lab, node, content| {
        story(lab, node, content);
        left_the_registry_once(lab, content);
    });
}

fn left_the_registry_once(lab: &Lab, content: &Content) {
    lab.registry().settle().unwrap();
    let repository = content.name.split(':').next().unwrap();
    let reads = lab.registry().blob_reads(repository);
    let foreign: Vec<_> = reads.iter().filter(|read| !read.user_agent.starts_with("flotilla/")).collect();
    assert!(foreign.is_empty(), "{} requests of others", foreign.len());
    for blob in content.blobs.iter().filter(|blob| blob.size > 0) {
        let sent: u64 =
            reads.iter().filter(|read| read.uri.contains(&blob.digest)).map(|read| read.body_bytes).sum();
        assert!(sent <= blob.size, "{} left the registry {sent} of {} bytes", blob.digest, blob.size);
    }
}

/// A client of the cache, or a word on its absence.
fn client(name: &str) -> Option<std::path::PathBuf> {
    let found = tool(name);
    if found.is_none() {
        eprintln!("skipped: no {name} here; cargo xtask setup builds it where Go is");
    }
    found
}

fn from(node: &Node, content: &Content) -> String {
    format!("{}/{REGISTRY}/{}", mirror(node), content.name)
}

/// Every blob and manifest is in an OCI layout, with its own bytes.
fn assert_layout(layout: &Path, content: &Content) {
    for blob in content.blobs.iter().chain(&content.manifests) {
        let file = layout.join("blobs/sha256").join(blob.digest.trim_start_matches("sha256:"));
        let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), blob.digest);
    }
}

fn by_oras(lab: &Lab, node: &Node, content: &Content) {
    let Some(program) = client("oras") else { return };
    let layout = lab.dir().join("by-oras");
    let to = format!("{}:v1", layout.display());
    let mut oras = Command::new(program);
    oras.env("HOME", lab.dir());
    say(oras.args(["cp", "--from-plain-http", "--to-oci-layout", &from(node, content), &to]));
    assert_layout(&layout, content);
}

fn by_regctl(lab: &Lab, node: &Node, content: &Content) {
    let Some(program) = client("regctl") else { return };
    let layout = lab.dir().join("by-regctl");
    let host = format!("reg={},tls=disabled", mirror(node));
    let to = format!("ocidir://{}", layout.display());
    let mut regctl = Command::new(program);
    regctl.env("HOME", lab.dir());
    say(regctl.args(["image", "copy", "--host", &host, &from(node, content), &to]));
    assert_layout(&layout, content);
}

fn by_crane(lab: &Lab, node: &Node, content: &Content) {
    let Some(program) = client("crane") else { return };
    let repository = from(node, content);
    let repository = repository.rsplit_once(':').unwrap().0;
    for blob in &content.blobs {
        let mut crane = Command::new(&program);
        crane.env("HOME", lab.dir()).args(["blob", "--insecure", &format!("{repository}@{}", blob.digest)]);
        let said = crane.output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(&said.stdout))), blob.digest);
    }
    for manifest in &content.manifests {
        let name = format!("{repository}@{}", manifest.digest);
        let mut crane = Command::new(&program);
        let said = crane.env("HOME", lab.dir()).args(["manifest", "--insecure", &name]).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let exact = [text.as_str(), text.trim_end()];
        let digest = |text: &str| format!("sha256:{}", hex::encode(Sha256::digest(text)));
        assert!(exact.iter().any(|text| digest(text) == manifest.digest), "{text}");
    }
}

fn by_skopeo(lab: &Lab, node: &Node, content: &Content) {
    if !has("skopeo") {
        eprintln!("skipped: no skopeo here; cargo xtask setup installs it");
        return;
    }
    let copy = lab.dir().join("by-skopeo");
    let (source, to) = (format!("docker://{}", from(node, content)), format!("dir:{}", copy.display()));
    say(Command::new("skopeo").args(["copy", "--all", "--src-tls-verify=false", &source, &to]));
    for blob in &content.blobs {
        let bytes = fs::read(copy.join(blob.digest.trim_start_matches("sha256:"))).unwrap();
        assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), blob.digest);
    }
}

fn by_docker(lab: &Lab, node: &Node, content: &Content) {
    if !has("dockerd") {
        eprintln!("skipped: no dockerd here; cargo xtask setup installs it");
        return;
    }
    let config = lab.dir().join("docker/daemon.json").display().to_string();
    install(node, &["--docker", "--docker-config", &config]);
    let docker = Dockerd::own().start(lab, &[]);
    let pulled = docker.say(&["pull", &content.name]);
    assert!(pulled.contains(&content.manifests[0].digest), "{pulled}");
    let own = docker.say(&["image", "inspect", "--format", "{{.Id}}", &content.name]);
    assert!(content.blobs.iter().any(|blob| blob.digest == own.trim()), "its config is one of ours: {own}");
}
