//! Our mirror for Podman, Buildah, Skopeo and CRI-O: one file of `registries.conf.d`, which all of them read.

use std::path::Path;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{
    files::{Backup, Change, backup_of},
    parse, read,
};
use crate::oci::host_name;

const HEADER: &str =
    "# The node's own mirror, entered by `flotilla install`; `flotilla uninstall` removes this file.\n";

const NAME: &str = "flotilla.conf";

/// What is entered.
pub(super) struct Wanted<'a> {
    pub(super) registries: &'a [String],
    pub(super) mirror: &'a str,
    /// Those of them that are spoken to without TLS, which Podman has to be told.
    pub(super) plain: &'a [String],
}

/// The file for the registries, and what is said about those that somebody else has settings for.
pub(super) fn install(dir: &Path, wanted: &Wanted<'_>) -> anyhow::Result<(Change, Vec<String>)> {
    let (mut entries, mut notes) = (ArrayOfTables::new(), Vec::new());
    for registry in wanted.registries {
        match owner(dir, registry)? {
            Some(file) => notes.push(format!(
                "{file} has settings for {registry}, of which Podman takes one only: left alone, and its pulls do not go by \
                 the mirror unless you add this to them:\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true",
                location(registry, wanted.mirror)
            )),
            None => {
                let host = registry.split('/').next().unwrap_or_default();
                let is_plain = wanted.plain.iter().any(|plain| plain == host || plain == host_name(host));
                entries.push(entry(registry, wanted.mirror, is_plain));
            }
        }
    }
    let path = dir.join(NAME);
    if entries.is_empty() {
        return Ok((uninstall(dir)?, notes));
    }
    let before = read(&path)?;
    // What somebody has written there comes back.
    let is_theirs = before.as_deref().is_some_and(|text| !is_ours(&path, text));
    let backup = if is_theirs { Backup::Make } else { Backup::Leave };
    Ok((Change { before, path, after: Some(written(entries)), backup }, notes))
}

pub(super) fn uninstall(dir: &Path) -> anyhow::Result<Change> {
    let path = dir.join(NAME);
    let before = read(&path)?;
    let original = read(&backup_of(&path))?;
    let (after, backup) = match (&before, original) {
        (Some(text), Some(original)) if is_ours(&path, text) => (Some(original), Backup::Remove),
        (Some(text), None) if is_ours(&path, text) => (None, Backup::Leave),
        // Ours once, and changed since: only what is still ours goes.
        (Some(text), _) if text.starts_with(HEADER) => (without_ours(&path, text)?, Backup::Drop),
        // A file of this name that we have not written is somebody else's.
        _ => (before.clone(), Backup::Leave),
    };
    Ok(Change { path, before, after, backup })
}

fn written(entries: ArrayOfTables) -> String {
    let mut document = DocumentMut::new();
    document["registry"] = Item::ArrayOfTables(entries);
    format!("{HEADER}{document}")
}

/// Whether the file is as we have written it, for whichever registries and wherever the mirror was.
fn is_ours(path: &Path, text: &str) -> bool {
    let Ok(document) = parse(path, text) else { return false };
    let entries = document.get("registry").and_then(Item::as_array_of_tables);
    let again: Option<ArrayOfTables> = entries.into_iter().flatten().map(own).collect();
    again.is_some_and(|again| written(again) == text)
}

/// The entry anew, if it is one that we write.
fn own(written: &Table) -> Option<Table> {
    let registry = written.get("prefix")?.as_str()?;
    let mirrors = written.get("mirror")?.as_array_of_tables()?;
    let location = mirrors.iter().next()?.get("location")?.as_str()?;
    let is_plain = written.get("insecure").and_then(Item::as_bool) == Some(true);
    let again = entry(registry, location.strip_suffix(&format!("/{}", in_path(registry)))?, is_plain);
    (again.to_string() == written.to_string()).then_some(again)
}

/// The text without entries of ours; nothing where nothing else is in it.
fn without_ours(path: &Path, text: &str) -> anyhow::Result<Option<String>> {
    let mut document = parse(path, text)?;
    if let Some(entries) = document.get_mut("registry").and_then(Item::as_array_of_tables_mut) {
        entries.retain(|entry| own(entry).is_none());
        if entries.is_empty() {
            document.remove("registry");
        }
    }
    let left = document.to_string().replacen(HEADER, "", 1);
    Ok((!left.trim().is_empty()).then_some(left))
}

fn entry(registry: &str, mirror: &str, is_plain: bool) -> Table {
    let mut entry = Table::new();
    entry["prefix"] = value(registry);
    entry["location"] = value(registry);
    if is_plain {
        entry["insecure"] = value(true);
    }
    let mut ours = Table::new();
    ours["location"] = value(location(registry, mirror));
    // Plain HTTP, which does not leave this machine.
    ours["insecure"] = value(true);
    let mut mirrors = ArrayOfTables::new();
    mirrors.push(ours);
    entry["mirror"] = Item::ArrayOfTables(mirrors);
    entry
}

fn location(registry: &str, mirror: &str) -> String {
    format!("{}/{}", mirror.trim_start_matches("http://"), in_path(registry))
}

/// A registry as the mirror takes it in a path, where Podman bears no colon.
fn in_path(registry: &str) -> String {
    registry.replacen(':', "_", 1)
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
        let registries = ["docker.io".to_owned(), "r.local".to_owned(), "10.0.0.9:5000/team".to_owned()];
        let wanted = Wanted {
            registries: &registries,
            mirror: "http://127.0.0.1:7441",
            plain: &["10.0.0.9:5000".to_owned()],
        };
        let (change, notes) = install(&dir, &wanted).unwrap();
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
        let plain = "location = \"10.0.0.9:5000/team\"\ninsecure = true\n\n[[registry.mirror]]\n\
                     location = \"127.0.0.1:7441/10.0.0.9_5000/team\"";
        assert!(text.contains(plain) && text.matches("insecure").count() == 3, "{text}");
        assert!(!install(&dir, &wanted).unwrap().0.is_needed());
        // What somebody else has settings for since does not stay beside them.
        let all = "[[registry]]\nlocation = \"docker.io\"\n[[registry]]\nlocation = \"10.0.0.9:5000/team\"\n";
        std::fs::write(dir.join("50-theirs.conf"), all).unwrap();
        assert_eq!(install(&dir, &wanted).unwrap().0.after, None);
        std::fs::remove_file(dir.join("50-theirs.conf")).unwrap();
        uninstall(&dir).unwrap().apply().unwrap();
        assert_eq!(read(&dir.join(NAME)).unwrap(), None);
        assert!(!uninstall(&dir).unwrap().is_needed());
    }

    #[test]
    fn what_somebody_else_wrote_there_comes_back_and_what_was_added_stays() {
        let place = tempfile::tempdir().unwrap();
        let (dir, file) = (place.path(), place.path().join(NAME));
        let (hub, mirror) = (["docker.io".to_owned()], "http://127.0.0.1:7441");
        let theirs = "[[registry]]\nlocation = \"r.local\"\n";
        std::fs::write(&file, theirs).unwrap();
        let at = |mirror| install(dir, &Wanted { registries: &hub, mirror, plain: &[] }).unwrap().0;
        at(mirror).apply().unwrap();
        // The address has changed, and with it what we write.
        at("http://127.0.0.1:9999").apply().unwrap();
        uninstall(dir).unwrap().apply().unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some(theirs));
        std::fs::remove_file(&file).unwrap();

        at(mirror).apply().unwrap();
        let added = format!("{}\n[[registry]]\nlocation = \"r.local\"\n", read(&file).unwrap().unwrap());
        std::fs::write(&file, added).unwrap();
        uninstall(dir).unwrap().apply().unwrap();
        let left = read(&file).unwrap().unwrap();
        assert!(
            left.contains("r.local") && !left.contains("docker.io") && !left.contains("flotilla"),
            "{left}"
        );
    }
}
