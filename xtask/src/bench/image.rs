//! The images that crowds pull: the demo's files, in layers of other sizes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::crowd::Rate;
use crate::{
    demo_image,
    lab::Result,
    parts::{self, Outcome},
    shell::{cache, command, quiet},
};

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// F / B is ten seconds.
    One,
    /// The same files.
    Four,
    /// A hundred layers of 100 KB.
    Hundred,
    /// Three layers of 100 KB.
    Tiny,
    /// Sixteen large ones.
    Sixteen,
}

/// A layer's digest and bytes.
#[derive(Clone, Debug)]
pub struct Layer {
    pub digest: String,
    pub bytes: u64,
}

/// An image in the benchmark's registry.
#[derive(Clone, Debug)]
pub struct Image {
    /// The registry's folder.
    pub root: PathBuf,
    pub shape: Shape,
    pub rate: Rate,
    pub layers: Vec<Layer>,
    /// Layers, config and manifest.
    pub bytes: u64,
}

/// What `examples/lab_image.rs` printed about an image lies beside the registry's folder.
const FACTS: &str = "facts";

impl Shape {
    pub fn word(self) -> &'static str {
        match self {
            Shape::One => "one layer",
            Shape::Four => "four layers",
            Shape::Hundred => "100 small layers",
            Shape::Tiny => "tiny",
            Shape::Sixteen => "sixteen layers",
        }
    }

    /// `bench/one`, to which the registry's log is held.
    pub fn repository(self) -> &'static str {
        match self {
            Shape::One => "bench/one",
            Shape::Four => "bench/four",
            Shape::Hundred => "bench/hundred",
            Shape::Tiny => "bench/tiny",
            Shape::Sixteen => "bench/sixteen",
        }
    }

    /// Bytes, layers, and the size above which a file is left out. Those that links are measured with last ten
    /// seconds on each of them.
    fn cut(self, rate: Rate) -> [String; 6] {
        let [bytes, layers, file_max] = match self {
            Shape::One => [rate.mbit() * 1_280_000, 1, rate.mbit() * 1_000_000],
            Shape::Four => [rate.mbit() * 1_280_000, 4, rate.mbit() * 1_000_000],
            Shape::Hundred => [10_000_000, 100, 50_000],
            Shape::Tiny => [335_000, 3, 20_000],
            Shape::Sixteen => [128_000_000, 16, 8_000_000],
        };
        let [bytes, layers, file_max] = [bytes, layers, file_max].map(|number| number.to_string());
        ["--bytes".into(), bytes, "--layers".into(), layers, "--file-max".into(), file_max]
    }

    /// Whether its size depends on the links it is for.
    fn is_scaled(self) -> bool {
        matches!(self, Shape::One | Shape::Four)
    }
}

impl Image {
    /// Makes the image, or takes it from the cache.
    pub fn get(shape: Shape, rate: Rate) -> Result<Image> {
        let scale = if shape.is_scaled() { format!("-{}-mbit", rate.mbit()) } else { String::new() };
        let place = cache()?.join(shape.repository().to_owned() + &scale);
        if !place.join(FACTS).exists() {
            let demo = demo_image::get()?;
            parts::step(&format!("image of {}", shape.word()), || make(shape, rate, &demo, &place))?;
        }
        let facts = fs::read_to_string(place.join(FACTS))
            .map_err(|error| format!("reading the facts of {}: {error}", place.display()))?;
        let layer = |line: &str| {
            let (digest, bytes) = line.split_once(' ')?;
            Some(Layer { digest: digest.to_owned(), bytes: bytes.parse().ok()? })
        };
        let (bytes, layers) = facts.split_once('\n').ok_or("an image without layers")?;
        let bytes = bytes.parse().map_err(|error| format!("the size of {}: {error}", place.display()))?;
        let layers = layers.lines().filter_map(layer).collect();
        Ok(Image { root: place.join("registry"), shape, rate, layers, bytes })
    }

    /// One in blobs of up to 128 KiB, of 64 KiB in those of up to 32 MiB, of 256 KiB in those of up to 256 MiB.
    pub fn pieces(&self) -> u64 {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let pieces = |layer: &Layer| match layer.bytes {
            bytes if bytes <= 128 * KIB => 1,
            bytes if bytes <= 32 * MIB => bytes.div_ceil(64 * KIB),
            bytes => bytes.div_ceil(256 * KIB),
        };
        self.layers.iter().map(pieces).sum()
    }

    /// The layer with the most bytes.
    pub fn largest(&self) -> Result<&Layer> {
        self.layers.iter().max_by_key(|layer| layer.bytes).ok_or_else(|| "an image without layers".into())
    }

    /// `repository:tag`.
    pub fn name(&self) -> String {
        format!("{}:v1", self.shape.repository())
    }
}

fn make(shape: Shape, rate: Rate, demo: &demo_image::Image, place: &Path) -> Result<Outcome> {
    let registry = place.join("registry");
    let _left_by_a_run_that_was_cut_short = fs::remove_dir_all(&registry);
    quiet(writer(&registry).arg("pause"))?;
    let mut cut = writer(&registry);
    cut.args(["cut", &format!("{}:v1", shape.repository())]).args(shape.cut(rate));
    for digest in &demo.layers {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = demo.root.join("docker/registry/v2/blobs/sha256");
        cut.arg("--from").arg(blobs.join(hex.get(..2).unwrap_or_default()).join(hex).join("data"));
    }
    let facts = quiet(&mut cut)?;
    // The facts come last: what they lie beside is whole.
    fs::write(place.join(FACTS), facts).map_err(|error| format!("keeping {}: {error}", place.display()))?;
    Ok(Outcome::Done)
}

/// `examples/lab_image.rs`.
fn writer(registry: &Path) -> Command {
    let mut writer = command("target/debug/examples/lab_image");
    writer.arg("--root").arg(registry);
    writer
}
