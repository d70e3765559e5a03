//! Layers of a size that is asked for, of the files of other layers.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression as Level, read::GzDecoder, write::GzEncoder};
use tar::{Builder, Header};

use super::image::{Compression, Images, Layer, Published};

/// Which files, and how they are dealt.
#[derive(clap::Args)]
pub(super) struct Cut {
    /// `repository:tag`.
    name: String,
    /// A layer to take files from: a tar by gzip.
    #[arg(long, required = true)]
    from: Vec<PathBuf>,
    /// Compressed bytes of all files, each compressed alone; together they come to a few in a hundred less.
    #[arg(long)]
    bytes: u64,
    /// How many layers.
    #[arg(long, default_value_t = 1)]
    layers: u64,
    /// Larger files than this are left out.
    #[arg(long, default_value_t = u64::MAX)]
    file_max: u64,
}

/// A directory, a file or a symbolic link.
struct Taken {
    header: Header,
    path: PathBuf,
    target: Option<PathBuf>,
    bytes: Vec<u8>,
}

impl Cut {
    /// Writes the layers, the lowest first, and publishes the image.
    pub(super) fn publish(&self, images: &Images) -> Result<Published> {
        let layers = self.layers(images)?;
        let name = &self.name;
        images.publish(name, &layers, &["/bin/sh"]).with_context(|| format!("publishing {name}"))
    }

    fn layers(&self, images: &Images) -> Result<Vec<Layer>> {
        let mut dealt: Vec<Vec<Taken>> = (0..self.layers).map(|_| Vec::new()).collect();
        let mut weight = 0;
        for from in &self.from {
            let file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
            let mut archive = tar::Archive::new(GzDecoder::new(file));
            for entry in archive.entries().context("reading a layer")? {
                let Some(taken) = self.take(entry?)? else { continue };
                let layer = usize::try_from(weight * self.layers / self.bytes)?;
                // The last layer is full.
                let Some(into) = dealt.get_mut(layer) else { break };
                weight += taken.weight()?;
                into.push(taken);
            }
        }
        ensure!(weight >= self.bytes, "all files together come to {weight} bytes only");
        let write = |files: &Vec<Taken>| images.layer(Compression::Gzip, |out| write(files, out));
        dealt.iter().map(|files| write(files).context("writing a layer")).collect()
    }

    /// The entry, unless it is of a kind that needs another one, or too large.
    fn take<R: Read>(&self, mut entry: tar::Entry<'_, R>) -> Result<Option<Taken>> {
        let header = entry.header().clone();
        let kind = header.entry_type();
        // A layer's folder itself, `./`, has no name.
        let named = !matches!(entry.path()?.to_str(), Some("." | "./"));
        let fits = kind.is_dir() || kind.is_symlink() || (kind.is_file() && entry.size() <= self.file_max);
        if !fits || !named {
            return Ok(None);
        }
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").map(Path::to_owned).unwrap_or(path);
        let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(Taken { header, path, target, bytes }))
    }
}

impl Taken {
    /// About what it adds to a compressed layer.
    fn weight(&self) -> io::Result<u64> {
        let mut alone = GzEncoder::new(Vec::new(), Level::fast());
        alone.write_all(&self.bytes)?;
        Ok(alone.finish()?.len() as u64)
    }
}

fn write(files: &[Taken], out: &mut dyn Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    for Taken { header, path, target, bytes } in files {
        let mut header = header.clone();
        match target {
            Some(target) => tar.append_link(&mut header, path, target)?,
            None => tar.append_data(&mut header, path, bytes.as_slice())?,
        }
    }
    tar.finish()
}
