//! containerd's settings with what they import (`cmd/containerd/server/config`, `LoadConfig`): a path relative to the file
//! that names it, with wildcards or without.

use std::path::{Component, Path, PathBuf};

use anyhow::bail;
use toml_edit::{DocumentMut, Item};

use super::{parse, read};

/// Files read: containerd's packages bring one or two.
const FILES_MAX: usize = 256;

/// What `config` says, then what the files say that it imports, but for those in `passed_over`. Without a file there
/// may be drop-ins all the same.
pub(super) fn documents(config: &Path, passed_over: &Path) -> anyhow::Result<Vec<DocumentMut>> {
    let beside = config.parent().unwrap_or(Path::new("/"));
    let mut left = match config.exists() {
        true => vec![config.to_owned()],
        false => matching(&beside.join("conf.d/*.toml")),
    };
    let passed_over = real(passed_over.to_owned());
    let (mut seen, mut documents) = (Vec::new(), Vec::new());
    while !left.is_empty() {
        let path = real(left.remove(0));
        if seen.contains(&path) || path == passed_over {
            continue;
        }
        if seen.len() >= FILES_MAX {
            bail!("{} imports more than {FILES_MAX} files", config.display());
        }
        seen.push(path.clone());
        let Some(text) = read(&path)? else { continue };
        let document = parse(&path, &text)?;
        let imports = document.get("imports").and_then(Item::as_array);
        let named = imports.into_iter().flatten().filter_map(|import| import.as_str());
        left.extend(named.flat_map(|import| matching(&path.parent().unwrap_or(beside).join(import))));
        documents.push(document);
    }
    Ok(documents)
}

/// By one name whatever leads there, so that files that import each other are read once.
fn real(path: PathBuf) -> PathBuf {
    std::fs::canonicalize(&path).unwrap_or(path)
}

/// The files that a path with wildcards means, in order.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let Component::Normal(name) = part else {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let name = name.to_string_lossy();
        if !name.contains(['*', '?', '[']) {
            found.iter_mut().for_each(|path| path.push(&*name));
            continue;
        }
        let entries = found.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
        let fitting = entries.filter(|entry| fits(&name, &entry.file_name().to_string_lossy()));
        found = fitting.map(|entry| entry.path()).collect();
        found.sort();
    }
    found
}

/// Whether a name fits a pattern of `*`, `?` and `[…]`, the last taken for any character: a file too many is harmless.
fn fits(pattern: &str, name: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let tails = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            tails.into_iter().any(|at| fits(rest.as_str(), &name[at..]))
        }
        Some(first) => {
            let mut others = name.chars();
            let Some(letter) = others.next() else { return false };
            let after = match first {
                '[' => rest.as_str().split_once(']').map(|(_, after)| after),
                '?' => Some(rest.as_str()),
                first => (first == letter).then_some(rest.as_str()),
            };
            after.is_some_and(|after| fits(after, others.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_of_imports_are_read_by_name_and_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("config.toml", "imports = [\"conf.d/*.toml\", \"gone.toml\"]\nat = 0");
        write("conf.d/b.toml", "imports = [\"../config.toml\", \"deep/x?.tom[l]\"]\nat = 2");
        write("conf.d/a.toml", "at = 1");
        write("conf.d/flotilla.toml", "at = 9");
        write("conf.d/note.txt", "no TOML");
        write("conf.d/deep/x1.toml", "at = 3");
        let config = dir.path().join("config.toml");
        let documents = documents(&config, &dir.path().join("conf.d/flotilla.toml")).unwrap();
        let at: Vec<_> = documents.iter().map(|document| document["at"].as_integer().unwrap()).collect();
        assert_eq!(at, [0, 1, 2, 3]);
    }
}
