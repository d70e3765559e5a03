use serde_json::json;

use super::*;
use crate::oci::Algorithm;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn layer(name: &str) -> serde_json::Value {
    json!({"mediaType": GZIP, "digest": digest(name), "size": 7})
}

fn manifest(layers: &[serde_json::Value]) -> Vec<u8> {
    let config = json!({"digest": digest("config"), "size": 2});
    json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().into_bytes()
}

fn config(diff_ids: &[&str]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = diff_ids.iter().map(|name| digest(name)).collect();
    json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes()
}

fn read(manifest: &[u8], config: &[u8]) -> Result<Layers, Unfit> {
    Layers::read(&digest("manifest"), manifest, config)
}

fn reason(manifest: &[u8], config: &[u8]) -> &'static str {
    read(manifest, config).unwrap_err().reason()
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|&(key, value)| (key.into(), value.into())).collect()
}

fn image(labels_of_manifest: &[(&str, &str)], image_ref: Option<&str>) -> Image {
    let layers = read(&manifest(&[layer("a"), layer("b")]), &config(&["A", "B"])).unwrap();
    Image::new(&layers, &labels(labels_of_manifest), image_ref)
}

fn origins(image: &Image) -> Vec<String> {
    image.origins.iter().map(ToString::to_string).collect()
}

#[test]
fn layers_are_found_by_their_chain_ids() {
    let layers = read(&manifest(&[layer("a"), layer("b")]), &config(&["A", "B"])).unwrap();
    assert_eq!(layers.index_of(&digest("A")), Some(0));
    let top = digest(&format!("{} {}", digest("A"), digest("B")));
    assert_eq!(layers.index_of(&top), Some(1));
    assert_eq!(layers.index_of(&digest("B")), None);
    let top = &layers.layers[1];
    assert_eq!((&top.descriptor.digest, &top.diff_id), (&digest("b"), &digest("B")));
    assert_eq!(top.compression, Ok(Compression::Gzip));
    assert_eq!(top.r#ref, format!("layer-{}", digest("b")));
}

#[test]
fn an_empty_layer_may_repeat_and_a_stack_may_be_deep() {
    let (names, diffs): (Vec<String>, Vec<String>) =
        (0..100).map(|n| (format!("l{}", n / 2), format!("D{}", n / 2))).unzip();
    let stack: Vec<_> = names.iter().map(|name| layer(name)).collect();
    let diffs: Vec<&str> = diffs.iter().map(String::as_str).collect();
    let layers = read(&manifest(&stack), &config(&diffs)).unwrap();
    for (index, layer) in layers.layers.iter().enumerate() {
        assert_eq!(layers.index_of(&layer.chain_id), Some(index));
    }
}

#[test]
fn a_named_descriptor_has_another_ref() {
    let mut named = layer("a");
    named["annotations"] = json!({REF_NAME_ANNOTATION: "base"});
    let layers = read(&manifest(&[named]), &config(&["A"])).unwrap();
    assert_eq!(layers.layers[0].r#ref, format!("layer-base@{}", digest("a")));
}

#[test]
fn a_layer_for_containerd_alone_does_not_spoil_the_others() {
    let mut foreign = layer("a");
    foreign["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    let layers = read(&manifest(&[foreign, layer("b")]), &config(&["A", "B"])).unwrap();
    assert_eq!(layers.layers[0].compression.as_ref().unwrap_err().reason(), "foreign");
    assert_eq!(layers.layers[1].compression, Ok(Compression::Gzip));
}

#[test]
fn documents_that_contradict_each_other_are_declined_by_name() {
    let two = manifest(&[layer("a"), layer("b")]);
    assert_eq!(reason(&two, &config(&["A"])), "count");
    assert_eq!(reason(&two, b"<html>"), "config");
    assert_eq!(reason(b"{}", &config(&["A"])), "manifest");
    assert_eq!(reason(br#"{"schemaVersion": 1, "config": 5}"#, b"{}"), "manifest");
    let schema_1 = String::from_utf8(two).unwrap().replace(r#""schemaVersion":2"#, r#""schemaVersion":1"#);
    assert_eq!(reason(schema_1.as_bytes(), &config(&["A", "B"])), "schema_version");
    let index = br#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "config": {"digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 2},
        "layers": []}"#;
    assert_eq!(reason(index, &config(&[])), "media_type");
}

#[test]
fn digests_that_cannot_be_checked_are_declined_by_name() {
    let mut odd = layer("a");
    odd["digest"] = "blake9:00".into();
    assert_eq!(reason(&manifest(&[odd]), &config(&["A"])), "digest_algorithm");
    let odd_config = br#"{"rootfs": {"diff_ids": ["blake9:00"]}}"#;
    assert_eq!(reason(&manifest(&[layer("a")]), odd_config), "digest_algorithm");
    let mut broken = layer("a");
    broken["digest"] = "sha256:00".into();
    assert_eq!(reason(&manifest(&[broken]), &config(&["A"])), "manifest");
}

#[test]
fn source_labels_become_repositories() {
    let image = image(
        &[
            ("containerd.io/distribution.source.docker.io", "library/debian,team/base"),
            ("containerd.io/distribution.source.::1", "app"),
            ("containerd.io/distribution.source.bad host", "../x"),
            ("containerd.io/gc.ref.content.l.0", "sha256:…"),
            ("other", "label"),
        ],
        None,
    );
    assert_eq!(origins(&image), ["[::1]/app", "docker.io/library/debian", "docker.io/team/base"]);
    assert!(!image.discard_unpacked);
    assert_eq!(image.name, None);
    assert_eq!(image.sources.len(), 3);
}

#[test]
fn the_clients_name_gives_the_port_back_if_it_agrees() {
    let source = [("containerd.io/distribution.source.127.0.0.1", "other,team/app")];
    let agreed = image(&source, Some("127.0.0.1:5055/team/app:v1"));
    assert_eq!(origins(&agreed), ["127.0.0.1:5055/team/app", "127.0.0.1/other"]);
    assert_eq!(agreed.name.as_deref(), Some("127.0.0.1:5055/team/app:v1"));
    for contradicting in ["127.0.0.1:5055/team/evil:v1", "127.0.0.2:5055/team/app", "no reference", ""] {
        let image = image(&source, Some(contradicting));
        assert_eq!(origins(&image), ["127.0.0.1/other", "127.0.0.1/team/app"], "{contradicting}");
        assert_eq!(image.name, None);
    }
}

#[test]
fn without_source_labels_a_name_alone_is_not_believed() {
    let image = image(&[], Some("registry.example/team/app:v1"));
    assert_eq!(origins(&image), [""; 0]);
    assert_eq!(image.name, None);
}

#[test]
fn an_image_has_the_best_title_there_is() {
    let source = [("containerd.io/distribution.source.docker.io", "library/debian")];
    let short = digest("manifest").short();
    assert_eq!(image(&source, Some("debian:12")).title(), "docker.io/library/debian:12");
    assert_eq!(image(&source, None).title(), format!("docker.io/library/debian@{short}"));
    assert_eq!(image(&[], Some("debian:12")).title(), short);
}

#[test]
fn a_manifest_without_edges_to_its_layers_means_that_they_are_discarded() {
    assert!(image(&[("containerd.io/gc.ref.content.config", "sha256:…")], None).discard_unpacked);
    let empty = Layers { manifest: digest("m"), layers: Arc::new([]), manifest_len: 0 };
    assert!(!Image::new(&empty, &labels(&[]), None).discard_unpacked);
}

#[test]
fn a_blob_is_labelled_with_its_tar_and_its_sources() {
    let source = ("containerd.io/distribution.source.docker.io", "library/debian");
    let labels_of_blob = image(&[source, ("x", "y")], None).blob_labels(1);
    let tar = digest("B").to_string();
    assert_eq!(labels_of_blob, labels(&[source, (UNCOMPRESSED_LABEL, tar.as_str())]));
}
