//! The demo's image: a real Debian with real Python packages, five layers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    lab::Result,
    parts::{self, Outcome, debian},
    shell::{cache, command, quiet},
};

/// The image that the demo pulls.
pub const NAME: &str = "demo/app:v1";

/// What a container of it runs, and a word that it must print.
pub const COMMAND: [&str; 3] =
    ["python3", "-c", "import numpy, pandas; print('ran', numpy.arange(4).sum(), pandas.__version__)"];
pub const PRINTS: &str = "ran 6 2.1.4";

const SUITE: &str = "bookworm";

/// One layer each: large wheels, whose versions are those of this suite's Python 3.11.
const WHEELS: [&[&str]; 4] = [
    &["numpy==1.26.4"],
    &["scipy==1.11.4"],
    &["pandas==2.1.4", "python-dateutil==2.9.0", "pytz==2024.1", "six==1.16.0", "tzdata==2024.1"],
    &["pyarrow==14.0.2", "scikit-learn==1.3.2"],
];

/// A registry's folder that holds the image and the sandbox image.
pub struct Image {
    pub root: PathBuf,
    /// Layers, config and manifest.
    pub bytes: u64,
    /// Digests.
    pub layers: Vec<String>,
}

/// What the cache's folder of the image says about it, as `examples/lab_image.rs` printed it.
const FACTS: &str = "facts";

/// Makes the image, or takes it from the cache.
pub fn get() -> Result<Image> {
    get_while(|| Ok(()))
}

/// The same; what packs it is there when `built` has been called.
pub fn get_while(built: impl FnOnce() -> Result<()>) -> Result<Image> {
    let place = cache()?.join("demo");
    let work = cache()?.join("demo.part");
    let is_kept = place.join(FACTS).exists();
    if !is_kept {
        parts::step("the demo image's files", || gather(&work))?;
    }
    built()?;
    if !is_kept {
        parts::step("demo image", || pack(&work, &place))?;
    }
    let facts =
        fs::read_to_string(place.join(FACTS)).map_err(|error| format!("reading the demo image: {error}"))?;
    let mut lines = facts.lines();
    let bytes =
        lines.next().and_then(|line| line.parse().ok()).ok_or("the demo image's facts lack its size")?;
    let layers = lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    Ok(Image { root: place.join("registry"), bytes, layers })
}

/// The folders that become layers, the lowest first.
fn folders(work: &Path) -> Vec<PathBuf> {
    let wheels = (0..WHEELS.len()).map(|number| work.join(format!("wheels-{number}")));
    std::iter::once(work.join("base")).chain(wheels).collect()
}

fn gather(work: &Path) -> Result<Outcome> {
    let _left_by_a_run_that_was_cut_short = fs::remove_dir_all(work);
    fs::create_dir_all(work).map_err(|error| format!("making {}: {error}", work.display()))?;
    let folders = folders(work);
    bootstrap(&folders[0])?;
    for (number, (wheels, layer)) in WHEELS.iter().zip(&folders[1..]).enumerate() {
        unpack_wheels(&work.join(format!("download-{number}")), layer, wheels)?;
    }
    Ok(Outcome::Done)
}

fn pack(work: &Path, place: &Path) -> Result<Outcome> {
    let layers = folders(work);
    let registry = work.join("registry");
    writer(&registry, &["pause"], &[])?;
    let facts = writer(&registry, &["pack", NAME], &layers)?;
    let kept = fs::create_dir_all(place)
        .and_then(|()| fs::rename(&registry, place.join("registry")))
        .and_then(|()| fs::write(place.join(FACTS), facts));
    kept.map_err(|error| format!("keeping the demo image in {}: {error}", place.display()))?;
    let _scratch = fs::remove_dir_all(work);
    Ok(Outcome::Done)
}

/// Calls `examples/lab_image.rs`.
fn writer(registry: &Path, arguments: &[&str], layers: &[PathBuf]) -> Result<String> {
    let mut writer = command("target/debug/examples/lab_image");
    writer.arg("--root").arg(registry).args(arguments);
    for layer in layers {
        writer.arg("--layer").arg(layer);
    }
    quiet(&mut writer)
}

fn bootstrap(into: &Path) -> Result<()> {
    let archive = debian::archive()?;
    let mut debootstrap = command("debootstrap");
    debootstrap.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    debootstrap
        .args(["--variant=minbase", "--include=python3,libstdc++6,libgomp1", SUITE])
        .arg(into)
        .arg(archive);
    quiet(&mut debootstrap)?;
    // Packages and lists that no image keeps.
    for scratch in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let _it_is_only_larger_with_it = fs::remove_dir_all(into.join(scratch));
    }
    Ok(())
}

fn unpack_wheels(download: &Path, layer: &Path, wheels: &[&str]) -> Result<()> {
    let place = layer.join("usr/lib/python3/dist-packages");
    fs::create_dir_all(&place).map_err(|error| format!("making {}: {error}", place.display()))?;
    let mut pip = command("pip3");
    pip.args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "--dest"]);
    let platforms = ["manylinux2014", "manylinux_2_17", "manylinux_2_28"];
    pip.arg(download).args(platforms.map(|p| format!("--platform={p}_{}", std::env::consts::ARCH)));
    quiet(pip.args(wheels))?;
    for wheel in fs::read_dir(download).map_err(|error| format!("reading wheels: {error}"))?.flatten() {
        quiet(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel.path()).arg(&place))?;
    }
    Ok(())
}
