//! nerdctl's default snapshotter.

use std::path::Path;

use toml_edit::{Item, value};

use super::{
    files::{Backup, Change, backup_of},
    parse, read,
};

pub(super) fn install(config: &Path) -> anyhow::Result<Change> {
    let before = read(config)?;
    let mut document = parse(config, before.as_deref().unwrap_or(""))?;
    document["snapshotter"] = value("flotilla");
    Ok(Change { path: config.to_owned(), before, after: Some(document.to_string()), backup: Backup::Make })
}

pub(super) fn uninstall(config: &Path) -> anyhow::Result<Change> {
    let before = read(config)?;
    let original = read(&backup_of(config))?;
    let mut document = parse(config, before.as_deref().unwrap_or(""))?;
    if document.get("snapshotter").and_then(Item::as_str) != Some("flotilla") {
        return Ok(Change { path: config.to_owned(), after: before.clone(), before, backup: Backup::Leave });
    }
    let old = parse(config, original.as_deref().unwrap_or(""))?;
    match old.get("snapshotter") {
        Some(snapshotter) => document["snapshotter"] = snapshotter.clone(),
        None => drop(document.remove("snapshotter")),
    }
    let after = document.to_string();
    let untouched = original.as_deref() == Some(after.as_str());
    let backup = if untouched { Backup::Remove } else { Backup::Drop };
    let after = (original.is_some() || !after.trim().is_empty()).then_some(after);
    Ok(Change { path: config.to_owned(), before, after, backup })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshotter_comes_and_goes() {
        for text in [None, Some("debug = true\n"), Some("snapshotter = \"stargz\"\n")] {
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("nerdctl.toml");
            if let Some(text) = text {
                std::fs::write(&config, text).unwrap();
            }
            install(&config).unwrap().apply().unwrap();
            assert!(read(&config).unwrap().unwrap().contains("snapshotter = \"flotilla\""));
            uninstall(&config).unwrap().apply().unwrap();
            assert_eq!(read(&config).unwrap().as_deref(), text);
        }
    }
}
