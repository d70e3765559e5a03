//! Which blobs the images of a namespace refer to.

use std::collections::HashMap;

use crate::{
    containerd::{ContentInfo, Image, REFERENCE_LABEL_PREFIX},
    oci::Digest,
};

/// A blob that an image refers to, and that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes, as containerd has counted them.
    pub(super) len: u64,
    pub(super) is_layer: bool,
}

/// Everything that can be reached from an image: indices, manifests, configs, layers, whatever else they refer to. The
/// labels are those that keep containerd itself from collecting a blob, so nothing is read and nothing parsed; what no
/// image needs is about to be collected, or was never finished.
pub(super) fn reachable(images: &[Image], contents: &[ContentInfo]) -> HashMap<Digest, Found> {
    let by_digest: HashMap<&Digest, &ContentInfo> =
        contents.iter().map(|content| (&content.digest, content)).collect();
    let mut found = HashMap::new();
    let mut next: Vec<(Digest, bool)> = images.iter().map(|image| (image.target.clone(), false)).collect();
    while let Some((digest, is_layer)) = next.pop() {
        let Some(content) = by_digest.get(&digest) else { continue };
        if found.insert(digest, Found { len: content.len, is_layer }).is_some() {
            continue;
        }
        next.extend(content.labels.iter().filter_map(|(label, value)| {
            let what = label.strip_prefix(REFERENCE_LABEL_PREFIX)?;
            Some((value.parse().ok()?, what.starts_with("l.")))
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(name: &str) -> Digest {
        Digest::of(Algorithm::Sha256, name.as_bytes())
    }

    /// A blob named so that refers to these: `("l.0", "layer")`.
    fn content(name: &str, references: &[(&str, &str)]) -> ContentInfo {
        let label = |&(what, name): &(&str, &str)| {
            (format!("{REFERENCE_LABEL_PREFIX}{what}"), digest(name).to_string())
        };
        ContentInfo {
            digest: digest(name),
            len: name.len() as u64,
            labels: references.iter().map(label).collect(),
            created_at: None,
            updated_at: None,
        }
    }

    fn image(target: &str) -> Image {
        Image { name: "a:b".into(), target: digest(target), media_type: String::new(), updated_at: None }
    }

    #[test]
    fn an_image_refers_to_its_index_manifest_config_and_layers() {
        let contents = [
            content("index", &[("m.0", "manifest"), ("m.1", "another platform's")]),
            content("manifest", &[("config", "config"), ("l.0", "layer"), ("l.1", "not there")]),
            content("config", &[]),
            content("layer", &[]),
            content("left behind", &[]),
        ];
        let found = reachable(&[image("index")], &contents);
        let expected = ["index", "manifest", "config", "layer"]
            .map(|name| (digest(name), Found { len: name.len() as u64, is_layer: name == "layer" }));
        assert_eq!(found, HashMap::from(expected));
        assert!(reachable(&[image("left")], &contents).is_empty());
        assert!(reachable(&[], &contents).is_empty());
    }

    #[test]
    fn labels_in_a_circle_come_to_an_end_and_odd_ones_are_passed_over() {
        let mut odd = content("b", &[("m.0", "a")]);
        odd.labels.insert(format!("{REFERENCE_LABEL_PREFIX}l.0"), "md5:00".into());
        odd.labels.insert("containerd.io/gc.ref.snapshot.overlayfs".into(), digest("c").to_string());
        let contents = [content("a", &[("m.0", "b")]), odd, content("c", &[])];
        let found = reachable(&[image("a"), image("b")], &contents);
        assert_eq!((found.len(), found.contains_key(&digest("c"))), (2, false));
    }
}
