//! The OCI distribution specification's own suite against the mirror: pull and content discovery.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    lab::{Lab, containerd, samples, story::missing, tool},
    mirror::{Alone, digest, noise, publish},
    registry::Registry,
};

/// What a registry that is only pulled from need not do.
const OFF: [&str; 4] =
    ["OCI_API_PUSH", "OCI_API_BLOBS_DELETE", "OCI_API_MANIFESTS_DELETE", "OCI_API_TAGS_DELETE"];

fn suite() -> Option<PathBuf> {
    let suite = tool("conformance");
    if suite.is_none() {
        eprintln!("skipped: no conformance suite here; cargo xtask setup builds it where Go is");
    }
    suite
}

const REPOSITORY: &str = "demo/small";
const TAG: &str = "v1";

/// What the suite is to look at there.
struct Content {
    manifest: String,
    blobs: Vec<String>,
    /// Checks of pull and discovery that there are for it.
    checks: u32,
}

/// Runs the suite against a mirror, and wants every check to pass; what it said.
fn passes(suite: &Path, dir: &Path, mirror: &str, content: &Content, off: &[&str]) -> String {
    let mut command = Command::new(suite);
    command.current_dir(dir).envs(off.iter().map(|name| (name, "false")));
    command
        .env("OCI_CONFIGURATION", "/dev/null")
        .env("OCI_TLS", "disabled")
        .env("OCI_REGISTRY", mirror)
        .env("OCI_REPO1", REPOSITORY)
        .env("OCI_RO_DATA_TAGS", TAG)
        .env("OCI_RO_DATA_MANIFESTS", &content.manifest)
        .env("OCI_RO_DATA_BLOBS", content.blobs.join(" "));
    // It may panic at its end, over a file of results; what counts is printed before.
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&ended.stderr);
    let counted = |name: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(&format!("{name}...")))?;
        line.rsplit(' ').next()?.parse::<u32>().ok()
    };
    assert!(said.contains("OCI Conformance Result: Pass"), "{said}");
    assert!(counted("Pass").is_some_and(|passed| passed >= content.checks), "{said}");
    assert_eq!((counted("FAIL"), counted("Error"), counted("Skip")), (Some(0), Some(0), Some(0)), "{said}");
    said
}

#[test]
fn the_conformance_suite_passes_against_the_mirror() {
    let Some(suite) = suite() else { return };
    let Some(programs) = containerd::any().filter(|_| missing().is_none()) else {
        eprintln!("skipped: no containerd here, or no lab");
        return;
    };
    let lab = Lab::new().unwrap();
    let image = samples::small(lab.images(), &format!("{REPOSITORY}:{TAG}")).unwrap();
    let upstream = format!("{:?}", lab.host());
    let node = lab.node(&programs).alone().setting("mirror", "default_upstream", &upstream).start().unwrap();
    let layers = image.layers.iter().map(|layer| layer.blob.digest.clone());
    let content = Content {
        manifest: image.manifest.digest.clone(),
        blobs: layers.chain([image.config.digest.clone()]).collect(),
        checks: 14,
    };
    let mirror = node.daemon().unwrap().address_of("mirror").unwrap();
    // The registry behind it is docker-registry 2.8, which knows no referrers.
    passes(&suite, lab.dir(), &mirror, &content, &[&OFF[..], &["OCI_API_REFERRER"]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn and_with_referrers_where_the_registry_behind_it_knows_them() {
    let Some(suite) = suite() else { return };
    let registry = Registry::start().await;
    let layer = noise(600_000, 1);
    let manifest = publish(&registry, REPOSITORY, TAG, std::slice::from_ref(&layer));
    let upstream = registry.host();
    let alone = Alone::start(|settings| {
        settings.text("mirror", "default_upstream", &upstream);
    });
    let content =
        Content { manifest: manifest.to_string(), blobs: vec![digest(&layer).to_string()], checks: 13 };
    let said = tokio::task::block_in_place(|| passes(&suite, &alone.dir, &alone.address, &content, &OFF));
    let passed = |line: &str| line.trim_start().starts_with("Referrers...") && line.ends_with("Pass");
    assert!(said.lines().any(passed), "{said}");
}
