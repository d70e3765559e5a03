//! Writes images into a registry's folder, for `cargo xtask demo` and `cargo xtask bench`.
//!
//! ```text
//! lab_image --root DIR pause                        lab/pause:1, what CRI runs sandboxes from
//! lab_image --root DIR pack NAME --layer DIR…       an image of folders, the lowest layer first
//! lab_image --root DIR cut NAME --from BLOB… --bytes N --layers K
//!                                                   an image of the first files of other layers
//! ```
//! Prints the image's bytes (layers, config and manifest), then each layer's digest and bytes.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[path = "lab_image/cut.rs"]
mod cut;
#[path = "../tests/it/lab/image.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod image;
#[path = "../tests/it/lab/samples.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod samples;

use image::{Compression, Images};

/// Writes images into a registry's folder.
#[derive(Parser)]
struct Arguments {
    /// The registry's folder.
    #[arg(long)]
    root: PathBuf,
    #[command(subcommand)]
    image: Image,
}

#[derive(Subcommand)]
enum Image {
    /// The sandbox image.
    Pause,
    /// An image of folders.
    Pack {
        /// `repository:tag`.
        name: String,
        /// A folder that becomes a layer, packed by tar with its owners and attributes.
        #[arg(long, required = true)]
        layer: Vec<PathBuf>,
    },
    /// An image of the files of other layers, in their order, as many as make the bytes that are asked for.
    Cut(cut::Cut),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let images = Images::new(arguments.root);
    let published = match arguments.image {
        Image::Pause => samples::pause(&images).context("writing the sandbox image")?,
        Image::Pack { name, layer } => {
            let pack = |folder: &PathBuf| {
                images
                    .layer(Compression::Gzip, |out| tar(folder, out))
                    .with_context(|| format!("packing {}", folder.display()))
            };
            let layers = layer.iter().map(pack).collect::<Result<Vec<_>>>()?;
            if layers.iter().any(|layer| layer.blob.size == 0) {
                bail!("a layer without bytes");
            }
            images.publish(&name, &layers, &["/bin/sh"]).with_context(|| format!("publishing {name}"))?
        }
        Image::Cut(cut) => cut.publish(&images)?,
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", published.bytes())?;
    for layer in &published.layers {
        writeln!(out, "{} {}", layer.blob.digest, layer.blob.size)?;
    }
    Ok(())
}

/// tar itself knows hard links, devices and attributes.
fn tar(folder: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut tar = Command::new("tar")
        .args(["--create", "--sort=name", "--numeric-owner", "--xattrs", "--file=-", "--directory"])
        .arg(folder)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = tar.stdout.take().ok_or_else(|| io::Error::other("tar without output"))?;
    io::copy(&mut stdout, out)?;
    let status = tar.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("tar: {status}"))) }
}
