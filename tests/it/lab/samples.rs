//! The images of the stories. All run: their lowest layer is a static busybox.

use std::{fs, io};

use serde_json::json;

use super::image::{Blob, Compression, Entry, Images, Layer, Published};

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// What the stories call in a container.
const APPLETS: [&str; 8] = ["sh", "cat", "echo", "ls", "sleep", "sha256sum", "stat", "find"];

/// The lowest layer: busybox with its applets as symbolic links.
pub(crate) fn busybox(images: &Images, compression: Compression) -> io::Result<Layer> {
    let program = fs::read(BUSYBOX).map_err(|error| {
        io::Error::new(error.kind(), format!("{BUSYBOX} (package busybox-static): {error}"))
    })?;
    let links: Vec<String> = APPLETS.iter().map(|applet| format!("bin/{applet}")).collect();
    let mut entries = vec![
        Entry::Directory { path: "bin", mode: 0o755 },
        Entry::File { path: "bin/busybox", mode: 0o755, bytes: &program },
        Entry::Directory { path: "tmp", mode: 0o1777 },
        Entry::Directory { path: "etc", mode: 0o755 },
    ];
    entries.extend(links.iter().map(|path| Entry::Symlink { path, target: "busybox" }));
    images.entries(compression, &entries)
}

/// What CRI runs a sandbox from: it sleeps. Its layer is no other image's, so that a story's counts are
/// its own.
pub(crate) fn pause(images: &Images) -> io::Result<Published> {
    let program = fs::read(BUSYBOX)?;
    let entries = [
        Entry::File { path: "pause", mode: 0o755, bytes: &program },
        Entry::Symlink { path: "sleep", target: "pause" },
    ];
    let layer = images.entries(Compression::Gzip, &entries)?;
    images.publish("lab/pause:1", &[layer], &["/sleep", "1000000"])
}

/// Three layers, about 4 MB: busybox, settings, and noise of more than one piece.
pub(crate) fn small(images: &Images, name: &str) -> io::Result<Published> {
    let settings = images.entries(
        Compression::Gzip,
        &[
            Entry::Directory { path: "etc", mode: 0o755 },
            Entry::File { path: "etc/lab", mode: 0o640, bytes: b"a small image\n" },
            Entry::HardLink { path: "etc/lab.twin", target: "etc/lab" },
        ],
    )?;
    let noise = noise(images, 3 << 20, 1)?;
    images.publish(name, &[busybox(images, Compression::Gzip)?, settings, noise], &["/bin/cat", "/etc/lab"])
}

/// A layer with one file of `len` bytes that do not compress, `/noise/<seed>`.
pub(crate) fn noise(images: &Images, len: u64, seed: u64) -> io::Result<Layer> {
    let path = format!("noise/{seed}");
    let entries = [Entry::Directory { path: "noise", mode: 0o755 }, Entry::Noise { path: &path, len, seed }];
    images.entries(Compression::Gzip, &entries)
}

/// Busybox and `count` layers of one small file each, `/many/<number>`.
pub(crate) fn many_layers(images: &Images, name: &str, count: u32) -> io::Result<Published> {
    let mut layers = vec![busybox(images, Compression::Gzip)?];
    for number in 0..count {
        let path = format!("many/{number}");
        let bytes = format!("layer {number}\n");
        let entries = [
            Entry::Directory { path: "many", mode: 0o755 },
            Entry::File { path: &path, mode: 0o644, bytes: bytes.as_bytes() },
        ];
        layers.push(images.entries(Compression::Gzip, &entries)?);
    }
    images.publish(name, &layers, &["/bin/ls", "/many"])
}

/// Busybox and one layer of `len` bytes that do not compress: 1 GiB in the story.
pub(crate) fn large_layer(images: &Images, name: &str, len: u64) -> io::Result<Published> {
    let layers = [busybox(images, Compression::Gzip)?, noise(images, len, 7)?];
    images.publish(name, &layers, &["/bin/stat", "/noise/7"])
}

/// Busybox, a layer without any entry, and one above it.
pub(crate) fn empty_layer(images: &Images, name: &str) -> io::Result<Published> {
    let empty = images.entries(Compression::Gzip, &[])?;
    let layers = [busybox(images, Compression::Gzip)?, empty, noise(images, 100_000, 9)?];
    images.publish(name, &layers, &["/bin/stat", "/noise/9"])
}

/// One tar twice in one image, by gzip and by zstd: two blobs with one diffID.
pub(crate) fn twin_compressions(images: &Images, name: &str) -> io::Result<Published> {
    let twins = [busybox(images, Compression::Gzip)?, busybox(images, Compression::Zstd)?];
    images.publish(name, &twins, &["/bin/echo", "twins"])
}

/// Every layer in one compression.
pub(crate) fn compressed(images: &Images, name: &str, compression: Compression) -> io::Result<Published> {
    let entries = [Entry::Noise { path: "noise", len: 2 << 20, seed: 5 }];
    let layers = [busybox(images, compression)?, images.entries(compression, &entries)?];
    images.publish(name, &layers, &["/bin/stat", "/noise"])
}

/// Two images `<name>:a` and `<name>:b` that share their two lower layers.
pub(crate) fn sharing(images: &Images, repository: &str) -> io::Result<[Published; 2]> {
    let shared = [busybox(images, Compression::Gzip)?, noise(images, 2 << 20, 11)?];
    let publish = |tag: &str, seed| {
        let mut layers = shared.to_vec();
        layers.push(noise(images, 200_000, seed)?);
        images.publish(&format!("{repository}:{tag}"), &layers, &["/bin/ls", "/noise"])
    };
    Ok([publish("a", 12)?, publish("b", 13)?])
}

/// An index `name` of three images without a layer in common, for amd64, arm64 and s390x.
pub(crate) fn several_platforms(images: &Images, name: &str) -> io::Result<(Blob, [Published; 3])> {
    let publish = |architecture: &str, seed| {
        let layers = [noise(images, 2 << 20, seed)?, noise(images, 300_000, seed + 1)?];
        images.publish_for(architecture, &format!("{name}-{architecture}"), &layers, &["/noise"])
    };
    let published = [publish("amd64", 51)?, publish("arm64", 53)?, publish("s390x", 55)?];
    let platforms = [
        json!({ "architecture": "amd64", "os": "linux" }),
        // As builders write it.
        json!({ "architecture": "arm64", "os": "linux", "variant": "v8" }),
        json!({ "architecture": "s390x", "os": "linux" }),
    ];
    let manifests = published.iter().zip(platforms).map(|(image, platform)| {
        let mut entry = image.manifest.descriptor();
        entry["platform"] = platform;
        entry
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests.collect::<Vec<_>>(),
    });
    Ok((images.publish_manifest(name, &index, &[])?, published))
}
