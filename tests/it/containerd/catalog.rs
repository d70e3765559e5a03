//! From chain IDs to layers, in a content store that containerd itself filled.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use flotilla::{
    containerd::Namespace,
    layer::intercept::{Catalog, Found},
    oci::Digest,
};

use super::{
    daemon::{Daemon, bytes, sha256},
    image::Archive,
};

const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";

async fn found(catalog: &Catalog, chain_id: &Digest, labels: &[(&str, &str)]) -> Found {
    catalog.find("k8s.io", &chain_id.to_string(), &map(labels)).await.unwrap()
}

async fn reason(catalog: &Catalog, namespace: &str, chain_id: &str) -> &'static str {
    catalog.find(namespace, chain_id, &HashMap::new()).await.unwrap_err().reason()
}

fn map(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

async fn label(namespace: &Namespace, blob: &Digest, key: &str, value: &str) {
    let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    namespace.set_labels(blob, &labels).await.unwrap();
}

#[tokio::test]
async fn a_chain_id_alone_leads_to_its_layer() {
    let Some(daemon) = Daemon::start() else { return };
    let catalog = Catalog::new(daemon.client());
    let archive = Archive::new(&["bottom", "middle", "top"]);
    let chain_ids = archive.chain_ids();
    assert_eq!(reason(&catalog, "k8s.io", &chain_ids[0].to_string()).await, "no_image");
    archive.import(&daemon, "k8s.io");
    Archive::new(&["bottom", "else"]).import(&daemon, "default");
    let mut images = Vec::new();
    for (index, chain_id) in chain_ids.iter().enumerate() {
        let found = found(&catalog, chain_id, &[]).await;
        assert_eq!(found.index, index);
        assert_eq!(found.image.manifest, archive.manifest);
        assert_eq!(found.layer().descriptor.digest, sha256(&archive.layers[index]));
        assert_eq!(found.layer().descriptor.size, archive.layers[index].len() as u64);
        assert_eq!(found.layer().diff_id, archive.diff_ids[index]);
        assert!(found.image.origins.is_empty());
        assert!(!found.image.discard_unpacked);
        images.push(found.image);
    }
    assert!(images.iter().all(|image| Arc::ptr_eq(image, &images[0])));
    assert_eq!(reason(&catalog, "default", &chain_ids[1].to_string()).await, "no_image");
    assert_eq!(reason(&catalog, "k8s.io", &archive.diff_ids[1].to_string()).await, "no_image");
    assert_eq!(reason(&catalog, "k8s.io", "blake9:00").await, "digest_algorithm");
    assert_eq!(reason(&catalog, "k8s.io", "nonsense").await, "chain_id");
}

#[tokio::test]
async fn repositories_come_from_the_labels_of_the_manifest() {
    let Some(daemon) = Daemon::start() else { return };
    let (catalog, namespace) = (Catalog::new(daemon.client()), daemon.namespace("k8s.io").await);
    let archive = Archive::new(&["sourced"]);
    archive.import(&daemon, "k8s.io");
    let chain_id = &archive.chain_ids()[0];
    assert!(found(&catalog, chain_id, &[]).await.image.origins.is_empty());
    label(&namespace, &archive.manifest, "containerd.io/distribution.source.127.0.0.1", "team/app").await;
    let image = found(&catalog, chain_id, &[]).await.image;
    assert_eq!(image.origins[0].to_string(), "127.0.0.1/team/app");
    let image_ref = (IMAGE_REF, "127.0.0.1:5055/team/app:v1");
    for labels in [vec![image_ref], vec![image_ref, (MANIFEST_DIGEST, &archive.manifest.to_string())]] {
        let image = found(&catalog, chain_id, &labels).await.image;
        assert_eq!(image.origins[0].to_string(), "127.0.0.1:5055/team/app");
        assert_eq!(image.name.as_deref(), Some("127.0.0.1:5055/team/app:v1"));
    }
}

#[tokio::test]
async fn discarded_layers_show_in_the_labels_of_the_manifest() {
    let Some(daemon) = Daemon::start() else { return };
    let (catalog, namespace) = (Catalog::new(daemon.client()), daemon.namespace("k8s.io").await);
    let archive = Archive::new(&["kept"]);
    archive.import(&daemon, "k8s.io");
    let chain_id = &archive.chain_ids()[0];
    assert!(!found(&catalog, chain_id, &[]).await.image.discard_unpacked);
    label(&namespace, &archive.manifest, "containerd.io/gc.ref.content.l.0", "").await;
    assert!(found(&catalog, chain_id, &[]).await.image.discard_unpacked);
}

#[tokio::test]
async fn of_two_images_with_the_same_tars_the_named_or_the_last_one_counts() {
    let Some(daemon) = Daemon::start() else { return };
    let (catalog, namespace) = (Catalog::new(daemon.client()), daemon.namespace("k8s.io").await);
    let words = ["same", "tars"];
    let (gzip, plain) = (Archive::new(&words), Archive::uncompressed(&words));
    assert_eq!(gzip.chain_ids(), plain.chain_ids());
    let top = &gzip.chain_ids()[1];
    gzip.import(&daemon, "k8s.io");
    plain.import(&daemon, "k8s.io");
    assert_eq!(found(&catalog, top, &[]).await.image.manifest, plain.manifest);
    // A pull of the older one touches its manifest.
    label(&namespace, &gzip.manifest, "containerd.io/distribution.source.docker.io", "library/app").await;
    assert_eq!(found(&catalog, top, &[]).await.image.manifest, gzip.manifest);
    let named = [(MANIFEST_DIGEST, &*plain.manifest.to_string())];
    let found = found(&catalog, top, &named).await;
    assert_eq!(found.image.manifest, plain.manifest);
    assert_eq!(found.layer().descriptor.digest, sha256(&plain.layers[1]));
}

#[tokio::test]
async fn labels_that_contradict_the_manifest_are_not_believed() {
    let Some(daemon) = Daemon::start() else { return };
    let catalog = Catalog::new(daemon.client());
    let (honest, other) = (Archive::new(&["honest"]), Archive::new(&["other"]));
    honest.import(&daemon, "k8s.io");
    other.import(&daemon, "k8s.io");
    let chain_id = &honest.chain_ids()[0];
    for lie in [other.manifest.to_string(), sha256(b"nowhere").to_string(), "nonsense".to_owned()] {
        let found = found(&catalog, chain_id, &[(MANIFEST_DIGEST, &lie)]).await;
        assert_eq!(found.image.manifest, honest.manifest, "{lie}");
    }
}

#[tokio::test]
async fn rotten_and_missing_documents_are_named() {
    let Some(daemon) = Daemon::start() else { return };
    let archive = Archive::new(&["rot"]);
    archive.import(&daemon, "k8s.io");
    let root = daemon.client().content_root().await.unwrap();
    let file = root.join("blobs/sha256").join(archive.manifest.hex());
    let manifest = std::fs::read(&file).unwrap();
    let rot = bytes("rot", manifest.len());
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, rot).unwrap();
    let catalog = Catalog::new(daemon.client());
    let chain_id = archive.chain_ids()[0].to_string();
    assert_eq!(reason(&catalog, "k8s.io", &chain_id).await, "rotten");
    std::fs::write(&file, manifest).unwrap();
    assert_eq!(found(&catalog, &archive.chain_ids()[0], &[]).await.index, 0);
}

#[tokio::test]
async fn without_containerd_nothing_is_found() {
    let Some(mut daemon) = Daemon::start() else { return };
    let catalog = Catalog::new(daemon.client());
    daemon.kill();
    assert_eq!(reason(&catalog, "k8s.io", &sha256(b"any").to_string()).await, "containerd_absent");
}
