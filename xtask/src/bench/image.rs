//! The images that crowds pull: the demo's files, in layers of other sizes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    demo_image,
    lab::Result,
    parts::{self, Outcome},
    shell::{cache, command, quiet},
};

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// F / B is ten seconds on a link of 100 Mbit/s.
    One,
    /// The same files.
    Four,
    /// A hundred layers of 100 KB.
    Hundred,
    /// Three layers of 100 KB.
    Tiny,
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
        }
    }

    /// `bench/one`, to which the registry's log is held.
    pub fn repository(self) -> &'static str {
        match self {
            Shape::One => "bench/one",
            Shape::Four => "bench/four",
            Shape::Hundred => "bench/hundred",
            Shape::Tiny => "bench/tiny",
        }
    }

    fn cut(self) -> [&'static str; 6] {
        match self {
            Shape::One => ["--bytes", "128000000", "--layers", "1", "--file-max", "100000000"],
            Shape::Four => ["--bytes", "128000000", "--layers", "4", "--file-max", "100000000"],
            Shape::Hundred => ["--bytes", "10000000", "--layers", "100", "--file-max", "50000"],
            Shape::Tiny => ["--bytes", "335000", "--layers", "3", "--file-max", "20000"],
        }
    }
}

impl Image {
    /// Makes the image, or takes it from the cache.
    pub fn get(shape: Shape) -> Result<Image> {
        let place = cache()?.join(shape.repository());
        if !place.join(FACTS).exists() {
            let demo = demo_image::get()?;
            parts::step(&format!("image of {}", shape.word()), || make(shape, &demo, &place))?;
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
        Ok(Image { root: place.join("registry"), shape, layers, bytes })
    }

    /// Pieces of 1 MiB, the length for blobs of up to 1 GiB.
    pub fn pieces(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes.div_ceil(1 << 20)).sum()
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

fn make(shape: Shape, demo: &demo_image::Image, place: &Path) -> Result<Outcome> {
    let registry = place.join("registry");
    let _left_by_a_run_that_was_cut_short = fs::remove_dir_all(&registry);
    quiet(writer(&registry).arg("pause"))?;
    let mut cut = writer(&registry);
    cut.args(["cut", &format!("{}:v1", shape.repository())]).args(shape.cut());
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
