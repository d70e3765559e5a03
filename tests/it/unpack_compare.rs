//! Our unpacking beside containerd's own: the same tree, inode by inode, and the same verdict on odd layers.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what is wrong")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    tree::{differences, facts},
    unpack_containerd::{Containerd, Layer},
    unpack_layers::{everything, oddities, random_layers, top, upper},
};
use flotilla::{
    oci::Compression,
    unpack::{self, Built, UnpackError},
};

/// Layers that we have unpacked, each in a directory of its own.
struct Ours {
    directory: tempfile::TempDir,
    built: Vec<Built>,
}

impl Ours {
    fn unpack(layers: &[Layer]) -> Result<Self, UnpackError> {
        let mut ours = Self { directory: tempfile::tempdir().unwrap(), built: Vec::new() };
        for (at, layer) in layers.iter().enumerate() {
            let staging = ours.layer(at);
            fs::create_dir(&staging).unwrap();
            fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).unwrap();
            let described =
                unpack::Layer { compression: Compression::Gzip, diff_id: &layer.diff_id, bottom: at == 0 };
            let built = unpack::unpack(&described, &layer.blob[..], &staging)?;
            let below: Vec<PathBuf> = (0..at).rev().map(|below| ours.layer(below)).collect();
            unpack::settle(&staging, &built, &below).unwrap();
            ours.built.push(built);
        }
        Ok(ours)
    }

    fn layer(&self, at: usize) -> PathBuf {
        self.directory.path().join(at.to_string())
    }

    fn implies_above_the_bottom(&self) -> bool {
        self.built[1..].iter().any(|built| !built.implied.is_empty() || !built.stated_late.is_empty())
    }

    /// What differs from containerd's directories, but for times that containerd takes from its clock.
    fn differences(&self, theirs: &[PathBuf]) -> Vec<String> {
        assert_eq!(self.built.len(), theirs.len());
        let differing = theirs.iter().zip(&self.built).enumerate().map(|(at, (theirs, built))| {
            let (ours, theirs) = (facts(&self.layer(at)), facts(theirs));
            let whiteouts = theirs.iter().filter(|facts| facts.kind == 'c' && facts.device == 0);
            let mut unstamped: BTreeSet<PathBuf> = whiteouts.map(|facts| facts.path.clone()).collect();
            unstamped.extend(built.implied.iter().cloned());
            differences(&ours, &theirs, &unstamped).into_iter().map(move |line| format!("layer {at}: {line}"))
        });
        differing.flatten().collect()
    }
}

#[test]
fn our_trees_are_containerds() {
    let Some(containerd) = Containerd::start() else { return };
    let layers = [everything(), upper(), top()];
    let theirs = containerd.unpack("everything", &layers).unwrap();
    let ours = Ours::unpack(&layers).unwrap();
    let differences = ours.differences(&theirs);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(facts(&ours.layer(0)).len() > 2000);
}

#[test]
fn our_verdict_is_containerds() {
    let Some(containerd) = Containerd::start() else { return };
    let mut differing = Vec::new();
    for oddity in oddities() {
        differing.extend(compare(&containerd, oddity.name, &oddity.layers));
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// What differs in trees, or in the verdict.
fn compare(containerd: &Containerd, name: &str, layers: &[Layer]) -> Vec<String> {
    match (Ours::unpack(layers), containerd.unpack(name, layers)) {
        (Ok(ours), Ok(theirs)) => {
            ours.differences(&theirs).iter().map(|line| format!("{name}: {line}")).collect()
        }
        (Err(UnpackError::Refused { .. }), Err(_)) => Vec::new(),
        // Where a layer below has a file, a whiteout or a circle of links on the way to an implied directory, containerd
        // fails looking behind it for the directory's attributes. We know that there are none.
        (Ok(ours), Err(theirs)) if ours.implies_above_the_bottom() && is_lost_below(&theirs) => Vec::new(),
        (ours, theirs) => {
            vec![format!("{name}: ours {:?}, theirs {theirs:?}", ours.map(|_| "taken"))]
        }
    }
}

fn is_lost_below(theirs: &str) -> bool {
    let loses_its_way = ["not a directory", "too many links", "too many levels of symbolic links"];
    loses_its_way.iter().any(|way| theirs.contains(way)) && !theirs.contains("failed to get root path")
}

/// Layers that come out of a few names, so that everything meets everything.
#[test]
fn random_layers_become_containerds_trees() {
    // Two a second, mostly containerd's time. 300, by hand, found nothing more.
    let seeds = std::env::var("FLOTILLA_UNPACK_SEEDS").map_or(40, |seeds| seeds.parse().unwrap());
    let Some(containerd) = Containerd::start() else { return };
    let differing: Vec<String> = (0..seeds)
        .flat_map(|seed| compare(&containerd, &format!("seed-{seed}"), &random_layers(seed)))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// The directories are those of this test alone.
#[test]
fn the_comparison_sees_what_differs() {
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |root: &Path, content: &str| fs::write(root.join("a"), content).unwrap();
    write(left.path(), "1");
    write(right.path(), "2");
    let unstamped = BTreeSet::from([PathBuf::from("a")]);
    assert_eq!(differences(&facts(left.path()), &facts(right.path()), &unstamped).len(), 1);
    write(right.path(), "1");
    assert!(differences(&facts(left.path()), &facts(right.path()), &unstamped).is_empty());
}
