//! Where labs and caches lie.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Result, sweep};

/// The cache folder that `cargo xtask setup` fills.
pub(crate) fn cache() -> Option<PathBuf> {
    let chosen = std::env::var_os("FLOTILLA_CACHE").map(PathBuf::from);
    chosen.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/flotilla")))
}

/// A client that `cargo xtask setup` built, `crictl`, `critest`, `nerdctl`, `crane`, `oras`, `regctl` or on demand `kubelet`, where Go was there to
/// build it.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(cache()?).ok()?.flatten().map(|entry| entry.path());
    let of_tool = |folder: &PathBuf| {
        let folder = folder.file_name().and_then(|folder| folder.to_str()).unwrap_or_default();
        folder.strip_prefix(name).is_some_and(|version| version.starts_with('-'))
    };
    folders.filter(of_tool).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Versions of something in the cache, and the folder with the programs of each.
pub(super) fn versions_of(name: &str) -> impl Iterator<Item = (String, PathBuf)> {
    let cached = cache().and_then(|cache| fs::read_dir(cache).ok()).into_iter().flatten().flatten();
    cached.filter_map(move |entry| {
        let version = entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('-')?.to_owned();
        Some((version, entry.path().join("bin")))
    })
}

/// Whether `1.6.20` is of the series `1.6`.
pub(crate) fn is_of(version: &str, series: &str) -> bool {
    version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.'))
}

/// A dockerd of this series that `cargo xtask setup` has unpacked.
pub(crate) fn dockerd(series: &str) -> Option<PathBuf> {
    let mut found = versions_of("docker").filter(|(version, _)| is_of(version, series));
    found.find_map(|(_, bin)| Some(bin.join("dockerd")).filter(|program| program.is_file()))
}

/// A folder for one lab, named so that `sweep` knows whose it is.
pub(crate) fn new_lab() -> Result<PathBuf> {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(sweep::PLACE).join(format!("{}{}x{count}", sweep::PREFIX, std::process::id()));
    fs::create_dir(&dir).map_err(|error| format!("making the lab {}: {error}", dir.display()))?;
    Ok(dir)
}

/// The lab that a folder lies in; the folder itself where it lies in none.
pub(crate) fn lab_of(dir: &Path) -> &Path {
    dir.ancestors().find(|folder| folder.parent() == Some(Path::new(sweep::PLACE))).unwrap_or(dir)
}
