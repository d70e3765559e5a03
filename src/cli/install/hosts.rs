//! Our mirror in containerd's hosts.toml folders.
//!
//! ```text
//! certs.d/_default/hosts.toml      ours, where there is none: for every registry without a folder of its own
//!         <host>/hosts.toml        somebody's: our mirror is entered before the hosts that stand there
//! ```
//! Whatever stands in these files stays as it is written. Folders that hold Docker's certificates and no hosts.toml are
//! left alone: a hosts.toml would put the certificates out of use.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml_edit::{Item, TableLike};

use super::{
    files::{Backup, Change, backup_of},
    parse, read,
};

const HEADER: &str =
    "# The node's own mirror, entered by `flotilla install`; `flotilla uninstall` takes it out.\n";

/// What is to be done in one folder of folders.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    /// What is left as it is, and why.
    pub(super) notes: Vec<String>,
}

/// Enters `mirror`, such as `http://127.0.0.1:7441`, into every folder of `dir`.
pub(super) fn install(dir: &Path, mirror: &str) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    let default = dir.join("_default");
    for folder in folders(dir)?.into_iter().filter(|folder| *folder != default) {
        let path = folder.join("hosts.toml");
        match read(&path)? {
            None if is_empty(&folder) => {}
            None => plan.notes.push(format!(
                "{}: left alone, it holds certificates in Docker's form; its registry is not pulled by the mirror",
                folder.display()
            )),
            Some(before) => match with_mirror(&path, &before, mirror) {
                Ok(after) => {
                    let backup = backup_for(Some(&before));
                    plan.changes.push(Change { path, before: Some(before), after: Some(after), backup });
                }
                Err(why) => plan.notes.push(format!("{why:#}; left alone")),
            },
        }
    }
    let path = default.join("hosts.toml");
    let before = read(&path)?;
    let after = match &before {
        Some(before) => with_mirror(&path, before, mirror)?,
        None => block(mirror),
    };
    let backup = backup_for(before.as_deref());
    plan.changes.push(Change { path, before, after: Some(after), backup });
    Ok(plan)
}

/// Takes the mirror out again, at whatever address it was entered, or stands at now: a file that nobody has touched since
/// is as it was before.
pub(super) fn uninstall(dir: &Path, current: Option<&str>) -> anyhow::Result<Vec<Change>> {
    let mut changes = Vec::new();
    for folder in folders(dir)? {
        let path = folder.join("hosts.toml");
        let Some(before) = read(&path)? else { continue };
        let Some(mirror) = entered(&before).or_else(|| current.map(str::to_owned)) else { continue };
        let mirror = &mirror;
        let original = read(&backup_of(&path))?;
        let untouched =
            |original: &String| with_mirror(&path, original, mirror).is_ok_and(|ours| ours == before);
        let (after, backup) = match original {
            Some(original) if untouched(&original) => (Some(original), Backup::Remove),
            Some(_) => (Some(without_mirror(&path, &before, mirror)?), Backup::Drop),
            None if before == block(mirror) => (None, Backup::WithFolder),
            None if before.starts_with(HEADER) => {
                (Some(without_mirror(&path, &before, mirror)?), Backup::Leave)
            }
            None => continue,
        };
        changes.push(Change { path, before: Some(before), after, backup });
    }
    Ok(changes)
}

fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut folders: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// The address under which we have entered the mirror into a file.
fn entered(text: &str) -> Option<String> {
    let (_, below) = text.split_once(HEADER)?;
    let name = below.lines().next()?.strip_prefix("[host.\"")?.strip_suffix("\"]")?;
    Some(name.to_owned())
}

/// What stands there with a mirror of ours is nothing to come back to.
fn backup_for(before: Option<&str>) -> Backup {
    if before.is_some_and(|before| entered(before).is_some()) { Backup::Leave } else { Backup::Make }
}

fn block(mirror: &str) -> String {
    format!("{HEADER}[host.{mirror:?}]\n  capabilities = [\"pull\", \"resolve\"]\n")
}

/// `text` with the mirror as the first host: the order of the tables is the order of asking. Where it stands at another
/// address, as it was before `mirror.listen` was changed, it stands there no longer.
fn with_mirror(path: &Path, text: &str, mirror: &str) -> anyhow::Result<String> {
    let cleared = match entered(text).filter(|old| old != mirror) {
        Some(old) => without_mirror(path, text, &old)?,
        None => text.to_owned(),
    };
    if cleared.trim().is_empty() && !text.trim().is_empty() {
        return Ok(block(mirror));
    }
    let text = cleared.as_str();
    let first = |text: &str| -> anyhow::Result<Option<String>> {
        let document = parse(path, text)?;
        let hosts = document.get("host").and_then(Item::as_table_like);
        Ok(hosts.and_then(|hosts: &dyn TableLike| hosts.iter().next().map(|(name, _)| name.to_owned())))
    };
    if first(text)?.as_deref() == Some(mirror) {
        return Ok(text.to_owned());
    }
    let mut at = 0;
    let header = text.split_inclusive('\n').find_map(|line| {
        let here = at;
        at += line.len();
        line.trim_start().starts_with("[host").then_some(here)
    });
    let (above, below) = text.split_at(header.unwrap_or(text.len()));
    let gap = if above.is_empty() || above.ends_with('\n') { "" } else { "\n" };
    let after = format!("{above}{gap}{}\n{below}", block(mirror));
    let entered = first(&after).ok().flatten().is_some_and(|first| first == mirror);
    anyhow::ensure!(entered, "{}: its hosts are not written as tables", path.display());
    Ok(after)
}

fn without_mirror(path: &Path, text: &str, mirror: &str) -> anyhow::Result<String> {
    if text.contains(&block(mirror)) {
        return Ok(text.replacen(&format!("{}\n", block(mirror)), "", 1).replacen(&block(mirror), "", 1));
    }
    let mut document = parse(path, text)?;
    if let Some(hosts) = document.get_mut("host").and_then(Item::as_table_like_mut) {
        hosts.remove(mirror);
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIRROR: &str = "http://127.0.0.1:7441";

    #[test]
    fn the_mirror_is_known_by_its_header_when_its_address_has_changed() {
        for theirs in [Some(THEIRS), None] {
            let dir = tempfile::tempdir().unwrap();
            if let Some(theirs) = theirs {
                fs::create_dir(dir.path().join("r.local")).unwrap();
                fs::write(dir.path().join("r.local/hosts.toml"), theirs).unwrap();
            }
            let apply = |changes: Vec<Change>| {
                changes.iter().filter(|change| change.is_needed()).for_each(|change| change.apply().unwrap());
            };
            let moved = "http://127.0.0.1:9999";
            apply(install(dir.path(), MIRROR).unwrap().changes);
            apply(install(dir.path(), moved).unwrap().changes);
            for file in ["r.local/hosts.toml", "_default/hosts.toml"] {
                let Some(text) = read(&dir.path().join(file)).unwrap() else { continue };
                assert!(text.contains(moved) && !text.contains(MIRROR), "{text}");
            }
            apply(uninstall(dir.path(), Some("http://127.0.0.1:1")).unwrap());
            assert_eq!(read(&dir.path().join("r.local/hosts.toml")).unwrap().as_deref(), theirs);
            assert!(!dir.path().join("_default").exists());
        }
    }

    #[test]
    fn the_bytes_that_come_back_are_those_of_the_last_install() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.local/hosts.toml");
        fs::create_dir(dir.path().join("r.local")).unwrap();
        fs::write(&file, THEIRS).unwrap();
        let apply = |changes: Vec<Change>| changes.iter().for_each(|change| change.apply().unwrap());
        apply(install(dir.path(), MIRROR).unwrap().changes);
        let edited = format!("# edited\n{}", read(&file).unwrap().unwrap());
        fs::write(&file, edited).unwrap();
        apply(uninstall(dir.path(), Some(MIRROR)).unwrap());
        let second = read(&file).unwrap().unwrap();
        assert!(second.starts_with("# edited") && !backup_of(&file).exists());
        apply(install(dir.path(), MIRROR).unwrap().changes);
        apply(uninstall(dir.path(), Some(MIRROR)).unwrap());
        assert_eq!(read(&file).unwrap(), Some(second));
    }

    const THEIRS: &str = "# since 2021\nserver = \"https://r.local\" # ours\n\n[host.\"https://cache.local\"]\n  \
                          capabilities = [\"pull\"]\n[host.\"https://cache.local\".header]\n  x = \"y\"\n";

    fn certs_d() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (folder, file, text) in [
            ("r.local", "hosts.toml", THEIRS),
            ("docker.local", "ca.crt", "CA"),
            ("plain.local", "hosts.toml", "server = \"x\""),
        ] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join(file), text).unwrap();
        }
        dir
    }

    fn apply(changes: &[Change]) {
        changes.iter().filter(|change| change.is_needed()).for_each(|change| change.apply().unwrap());
    }

    #[test]
    fn the_mirror_is_asked_first_and_everything_else_stays() {
        let dir = certs_d();
        let plan = install(dir.path(), MIRROR).unwrap();
        assert!(plan.notes.len() == 1 && plan.notes[0].contains("docker.local"), "{:?}", plan.notes);
        apply(&plan.changes);
        let text = fs::read_to_string(dir.path().join("r.local/hosts.toml")).unwrap();
        let document: toml_edit::DocumentMut = text.parse().unwrap();
        let hosts: Vec<_> =
            document["host"].as_table().unwrap().iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(hosts, [MIRROR, "https://cache.local"]);
        assert!(text.contains("# since 2021") && text.contains("# ours"), "{text}");
        assert_eq!(fs::read_to_string(dir.path().join("_default/hosts.toml")).unwrap(), block(MIRROR));
        let again = install(dir.path(), MIRROR).unwrap();
        assert!(again.changes.iter().all(|change| !change.is_needed()), "a second time changes nothing");
    }

    #[test]
    fn uninstalling_gives_back_every_byte() {
        let dir = certs_d();
        apply(&install(dir.path(), MIRROR).unwrap().changes);
        apply(&uninstall(dir.path(), Some(MIRROR)).unwrap());
        let text = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(
            (text("r.local/hosts.toml").as_str(), text("plain.local/hosts.toml").as_str()),
            (THEIRS, "server = \"x\"")
        );
        assert!(
            !dir.path().join("_default").exists()
                && !dir.path().join("r.local/hosts.toml.before-flotilla").exists()
        );
        assert!(uninstall(dir.path(), Some(MIRROR)).unwrap().is_empty());
    }

    #[test]
    fn what_was_changed_since_stays() {
        let dir = certs_d();
        apply(&install(dir.path(), MIRROR).unwrap().changes);
        let path = dir.path().join("r.local/hosts.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}\n[host.\"https://other.local\"]\n")).unwrap();
        apply(&uninstall(dir.path(), Some(MIRROR)).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("other.local") && text.contains("cache.local") && !text.contains(MIRROR),
            "{text}"
        );
    }

    #[test]
    fn hosts_that_are_not_tables_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("r.local")).unwrap();
        let text = "host = { \"https://m.local\" = { capabilities = [\"pull\"] } }\n";
        fs::write(dir.path().join("r.local/hosts.toml"), text).unwrap();
        let plan = install(dir.path(), MIRROR).unwrap();
        assert_eq!((plan.changes.len(), plan.notes.len()), (1, 1), "{:?}", plan.notes);
    }
}
