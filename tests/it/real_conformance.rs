//! The OCI distribution specification's own suite against the mirror: pull and content discovery.

use std::process::Command;

use crate::lab::{Lab, containerd, samples, story::missing, tool};

/// What a registry that is only pulled from need not do.
const OFF: [&str; 5] = [
    "OCI_API_PUSH",
    "OCI_API_BLOBS_DELETE",
    "OCI_API_MANIFESTS_DELETE",
    "OCI_API_TAGS_DELETE",
    // The registry behind it is docker-registry 2.8, which knows none.
    "OCI_API_REFERRER",
];

#[test]
fn the_conformance_suite_passes_against_the_mirror() {
    let Some(suite) = tool("conformance") else {
        eprintln!("skipped: no conformance suite here; cargo xtask setup builds it where Go is");
        return;
    };
    let Some(programs) = containerd::any().filter(|_| missing().is_none()) else {
        eprintln!("skipped: no containerd here, or no lab");
        return;
    };
    let lab = Lab::new().unwrap();
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let upstream = format!("{:?}", lab.host());
    let node = lab.node(&programs).alone().setting("mirror", "default_upstream", &upstream).start().unwrap();
    let blobs: Vec<&str> = image
        .layers
        .iter()
        .map(|layer| layer.blob.digest.as_str())
        .chain([image.config.digest.as_str()])
        .collect();
    let mut command = Command::new(suite);
    command.current_dir(lab.dir()).envs(OFF.map(|name| (name, "false")));
    command
        .env("OCI_CONFIGURATION", "/dev/null")
        .env("OCI_TLS", "disabled")
        .env("OCI_REGISTRY", node.daemon().unwrap().address_of("mirror").unwrap())
        .env("OCI_REPO1", "demo/small")
        .env("OCI_RO_DATA_TAGS", "v1")
        .env("OCI_RO_DATA_MANIFESTS", &image.manifest.digest)
        .env("OCI_RO_DATA_BLOBS", blobs.join(" "));
    // It may panic at its end, over a file of results; what counts is printed before.
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&ended.stderr);
    let counted = |name: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(&format!("{name}...")))?;
        line.rsplit(' ').next()?.parse::<u32>().ok()
    };
    assert!(said.contains("OCI Conformance Result: Pass"), "{said}");
    assert!(counted("Pass").is_some_and(|passed| passed >= 14), "{said}");
    assert_eq!((counted("FAIL"), counted("Error"), counted("Skip")), (Some(0), Some(0), Some(0)), "{said}");
}
