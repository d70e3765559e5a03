//! Our mirror in Docker's `daemon.json`: for its hub, the one registry that Docker takes a mirror for.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    files::{Backup, Change, backup_of},
    read,
};

const KEY: &str = "registry-mirrors";

pub(super) fn install(config: &Path, mirror: &str) -> anyhow::Result<Change> {
    let before = read(config)?;
    let original = read(&backup_of(config))?;
    let old = entered(config, before.as_deref(), original.as_deref())?.filter(|old| old != mirror);
    // What stands there with a mirror of ours is nothing to come back to.
    let backup = if old.is_some() { Backup::Leave } else { Backup::Make };
    let cleared = match (&before, old) {
        (Some(before), Some(old)) => Some(cleared(config, before, original.as_deref(), &old)?),
        (before, _) => before.clone(),
    };
    let after = Some(with_mirror(config, cleared.as_deref(), mirror)?);
    Ok(Change { path: config.to_owned(), before, after, backup })
}

/// Takes the mirror out at whatever address it was entered, or at the one that it has now.
pub(super) fn uninstall(config: &Path, current: Option<&str>) -> anyhow::Result<Change> {
    let before = read(config)?;
    let original = read(&backup_of(config))?;
    let old = entered(config, before.as_deref(), original.as_deref())?;
    let Some(mirror) = old.or_else(|| current.map(str::to_owned)) else {
        return Ok(Change { path: config.to_owned(), after: before.clone(), before, backup: Backup::Leave });
    };
    let mirror = mirror.as_str();
    let untouched = match &before {
        Some(before) => with_mirror(config, original.as_deref(), mirror).is_ok_and(|ours| ours == *before),
        None => false,
    };
    let (after, backup) = match (&before, original) {
        (Some(_), Some(original)) if untouched => (Some(original), Backup::Remove),
        (Some(_), None) if untouched => (None, Backup::Leave),
        (Some(before), Some(_)) => (Some(without_mirror(config, before, mirror)?), Backup::Drop),
        (Some(before), None) => (Some(without_mirror(config, before, mirror)?), Backup::Leave),
        (None, _) => (None, Backup::Leave),
    };
    Ok(Change { path: config.to_owned(), before, after, backup })
}

/// The address under which the mirror was entered: the first of the list, where the file without us had another there.
/// JSON has no comments by which to know it. Without such a file it is known only where nothing else stands beside it.
fn entered(path: &Path, now: Option<&str>, original: Option<&str>) -> anyhow::Result<Option<String>> {
    let Some(now) = now else { return Ok(None) };
    let listed = mirrors(&parse(path, now)?);
    let had = original.map(|original| parse(path, original)).transpose()?;
    let first = listed.first().and_then(Value::as_str).filter(|first| is_address(first)).map(str::to_owned);
    Ok(first.filter(|first| match &had {
        Some(had) => !mirrors(had).contains(&json!(first)),
        None => with_mirror(path, None, first).is_ok_and(|ours| ours == now),
    }))
}

/// As `mirror_url` writes it.
fn is_address(url: &str) -> bool {
    url.strip_prefix("http://").is_some_and(|address| address.parse::<SocketAddr>().is_ok())
}

/// The file without the mirror: as it was, if nobody has touched it since.
fn cleared(path: &Path, before: &str, original: Option<&str>, old: &str) -> anyhow::Result<String> {
    match original {
        Some(original) if with_mirror(path, Some(original), old)? == before => Ok(original.to_owned()),
        None if with_mirror(path, None, old)? == before => Ok(String::new()),
        Some(_) | None => without_mirror(path, before, old),
    }
}

fn parse(path: &Path, text: &str) -> anyhow::Result<serde_json::Map<String, Value>> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    serde_json::from_str(text).with_context(|| format!("{} is no JSON object", path.display()))
}

fn mirrors(settings: &serde_json::Map<String, Value>) -> Vec<Value> {
    settings.get(KEY).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// The settings with the mirror before all others.
fn with_mirror(path: &Path, before: Option<&str>, mirror: &str) -> anyhow::Result<String> {
    let text = before.filter(|text| !text.trim().is_empty()).unwrap_or("{}\n");
    let mut wanted = parse(path, text)?;
    let mut list = mirrors(&wanted);
    if list.contains(&json!(mirror)) {
        return Ok(text.to_owned());
    }
    list.insert(0, json!(mirror));
    let is_new = !wanted.contains_key(KEY);
    let is_empty = wanted.is_empty();
    wanted.insert(KEY.to_owned(), Value::Array(list.clone()));
    let typed =
        if is_new { with_key(text, mirror, is_empty) } else { into_list(text, mirror, list.len() > 1) };
    // What is written by hand stays as it is written, unless that would say something else.
    match typed.filter(|typed| parse(path, typed).is_ok_and(|typed| typed == wanted)) {
        Some(typed) => Ok(typed),
        None => Ok(serde_json::to_string_pretty(&wanted)? + "\n"),
    }
}

fn with_key(text: &str, mirror: &str, alone: bool) -> Option<String> {
    let (before, after) = text.split_once('{')?;
    let gap = if alone { "\n" } else { "," };
    Some(format!("{before}{{\n  \"{KEY}\": [{mirror:?}]{gap}{after}"))
}

fn into_list(text: &str, mirror: &str, others: bool) -> Option<String> {
    let at = text.find(&format!("\"{KEY}\""))?;
    let at = at + text.get(at..)?.find('[')? + 1;
    let gap = if others { ", " } else { "" };
    Some(format!("{}{mirror:?}{gap}{}", text.get(..at)?, text.get(at..)?.trim_start()))
}

fn without_mirror(path: &Path, text: &str, mirror: &str) -> anyhow::Result<String> {
    let mut settings = parse(path, text)?;
    let mut list = mirrors(&settings);
    if !list.contains(&json!(mirror)) {
        return Ok(text.to_owned());
    }
    list.retain(|listed| *listed != json!(mirror));
    match list.is_empty() {
        true => drop(settings.remove(KEY)),
        false => drop(settings.insert(KEY.to_owned(), Value::Array(list))),
    }
    Ok(serde_json::to_string_pretty(&settings)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIRROR: &str = "http://127.0.0.1:7441";

    #[test]
    fn a_mirror_at_its_old_address_is_not_left_behind() {
        for text in [None, Some("{\"mtu\": 1400}\n"), Some("{\"registry-mirrors\": [\"https://m.local\"]}")] {
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("daemon.json");
            if let Some(text) = text {
                std::fs::write(&config, text).unwrap();
            }
            let moved = "http://127.0.0.1:9999";
            install(&config, MIRROR).unwrap().apply().unwrap();
            install(&config, moved).unwrap().apply().unwrap();
            let installed = read(&config).unwrap().unwrap();
            assert!(installed.contains(moved) && !installed.contains(MIRROR), "{installed}");
            uninstall(&config, Some("http://127.0.0.1:1")).unwrap().apply().unwrap();
            assert_eq!(read(&config).unwrap().as_deref(), text);
        }
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("daemon.json");
        let theirs = "{\"registry-mirrors\": [\"http://10.0.0.1:5000\"], \"mtu\": 1400}";
        std::fs::write(&config, theirs).unwrap();
        assert!(!uninstall(&config, None).unwrap().is_needed(), "somebody else's");
    }

    #[test]
    fn the_mirror_comes_first_and_goes_without_a_trace() {
        for text in [
            None,
            Some("{}\n"),
            Some("{\n    \"mtu\": 1400,\n    \"debug\": true\n}\n"),
            Some("{\"registry-mirrors\": [\"https://m.local\"], \"mtu\": 1400}"),
            Some("{\"registry-mirrors\": []}"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("daemon.json");
            if let Some(text) = text {
                std::fs::write(&config, text).unwrap();
            }
            install(&config, MIRROR).unwrap().apply().unwrap();
            let installed = read(&config).unwrap().unwrap();
            assert_eq!(mirrors(&parse(&config, &installed).unwrap())[0], json!(MIRROR), "{installed}");
            assert!(text.is_none_or(|text| !text.contains("1400") || installed.contains("1400")));
            assert!(!install(&config, MIRROR).unwrap().is_needed());
            uninstall(&config, Some(MIRROR)).unwrap().apply().unwrap();
            assert_eq!(read(&config).unwrap().as_deref(), text);
            assert!(!uninstall(&config, Some(MIRROR)).unwrap().is_needed());
        }
    }

    #[test]
    fn what_was_changed_since_stays() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("daemon.json");
        std::fs::write(&config, "{\"mtu\": 1400}").unwrap();
        install(&config, MIRROR).unwrap().apply().unwrap();
        let text = read(&config).unwrap().unwrap().replace("1400", "1300");
        std::fs::write(&config, text).unwrap();
        uninstall(&config, Some(MIRROR)).unwrap().apply().unwrap();
        let settings = parse(&config, &read(&config).unwrap().unwrap()).unwrap();
        assert_eq!(Value::Object(settings), json!({ "mtu": 1300 }));
    }

    #[test]
    fn what_is_no_json_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("daemon.json");
        std::fs::write(&config, "{ mtu = 1 }").unwrap();
        assert!(install(&config, MIRROR).unwrap_err().to_string().contains("no JSON"));
    }
}
