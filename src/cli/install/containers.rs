//! Our mirror for Podman, Buildah, Skopeo and CRI-O: one file of `registries.conf.d`, which all of them read.

use std::path::Path;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{
    files::{Backup, Change},
    parse, read,
};

const HEADER: &str =
    "# The node's own mirror, entered by `flotilla install`; `flotilla uninstall` removes this file.\n";

const NAME: &str = "flotilla.conf";

/// The file for `registries`, and what is said about those that somebody else has settings for.
pub(super) fn install(
    dir: &Path,
    registries: &[String],
    mirror: &str,
) -> anyhow::Result<(Change, Vec<String>)> {
    let (mut entries, mut notes) = (ArrayOfTables::new(), Vec::new());
    for registry in registries {
        match owner(dir, registry)? {
            Some(file) => notes.push(format!("{file} has settings for {registry}; left alone")),
            None => entries.push(entry(registry, mirror)),
        }
    }
    let path = dir.join(NAME);
    let mut document = DocumentMut::new();
    if entries.is_empty() {
        let before = read(&path)?;
        return Ok((Change { path, after: before.clone(), before, backup: Backup::Leave }, notes));
    }
    document["registry"] = Item::ArrayOfTables(entries);
    let after = Some(format!("{HEADER}{document}"));
    Ok((Change { before: read(&path)?, path, after, backup: Backup::Leave }, notes))
}

pub(super) fn uninstall(dir: &Path) -> anyhow::Result<Change> {
    let path = dir.join(NAME);
    let before = read(&path)?;
    // A file of this name that we have not written is somebody else's.
    let after = before.clone().filter(|text| !text.starts_with(HEADER));
    Ok(Change { path, before, after, backup: Backup::Leave })
}

fn entry(registry: &str, mirror: &str) -> Table {
    let mut entry = Table::new();
    entry["prefix"] = value(registry);
    entry["location"] = value(registry);
    let mut ours = Table::new();
    ours["location"] = value(format!("{}/{registry}", mirror.trim_start_matches("http://")));
    // Plain HTTP, which does not leave this machine.
    ours["insecure"] = value(true);
    let mut mirrors = ArrayOfTables::new();
    mirrors.push(ours);
    entry["mirror"] = Item::ArrayOfTables(mirrors);
    entry
}

/// Another file that has an entry for `registry`: of two entries for one prefix only one counts.
fn owner(dir: &Path, registry: &str) -> anyhow::Result<Option<String>> {
    let main = dir.parent().unwrap_or(Path::new("/")).join("registries.conf");
    let others = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let others = others.filter(|path| path.extension().is_some_and(|ending| ending == "conf"));
    for path in others.filter(|path| !path.ends_with(NAME)).chain([main]) {
        let Some(text) = read(&path)? else { continue };
        let document = parse(&path, &text)?;
        let entries = document.get("registry").and_then(Item::as_array_of_tables);
        let names = |entry: &Table| {
            let named = |key| entry.get(key).and_then(Item::as_str);
            named("prefix").or_else(|| named("location")) == Some(registry)
        };
        if entries.is_some_and(|entries| entries.iter().any(names)) {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_comes_and_goes_and_others_registries_are_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("registries.conf.d");
        let theirs = "[[registry]]\nlocation = \"r.local\"\n";
        std::fs::write(place.path().join("registries.conf"), theirs).unwrap();
        let registries = ["docker.io".to_owned(), "r.local".to_owned()];
        let (change, notes) = install(&dir, &registries, "http://127.0.0.1:7441").unwrap();
        assert!(
            notes.len() == 1 && notes[0].contains("registries.conf has settings for r.local"),
            "{notes:?}"
        );
        change.apply().unwrap();
        let text = read(&dir.join(NAME)).unwrap().unwrap();
        assert!(
            text.contains("location = \"127.0.0.1:7441/docker.io\"") && !text.contains("r.local"),
            "{text}"
        );
        assert!(!install(&dir, &registries, "http://127.0.0.1:7441").unwrap().0.is_needed());
        uninstall(&dir).unwrap().apply().unwrap();
        assert_eq!(read(&dir.join(NAME)).unwrap(), None);
        assert!(!uninstall(&dir).unwrap().is_needed());
    }
}
