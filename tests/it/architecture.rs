//! The shape of the tree: who may import whom, how large a file may be.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each group may use the groups before it. Modules of one group do not know each other; `oci` stands
/// alone because a piece chain closes on one of its digests.
const GROUPS: [&[&str]; 10] = [
    &["oci"],
    &["piece", "wire", "erofs"],
    &["identity"],
    &["store", "origin", "mesh", "containerd", "snapshot", "unpack"],
    &["swarm"],
    &["pull"],
    &["layer", "object", "preheat"],
    &["door"],
    &["daemon"],
    &["cli"],
];

/// Blank lines, comments and tests apart.
const CODE_LINES_MAX: usize = 400;

/// Of ARCHITECTURE.md.
const MAP_LINES_MAX: usize = 250;

#[test]
fn a_module_imports_only_modules_to_its_left() {
    let mut wrong = Vec::new();
    for file in rust_files(Path::new("src")) {
        let relative = file.strip_prefix("src").unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let own = group(module).unwrap_or_else(|| panic!("src/{module} is in no group of {}", file!()));
        for other in imports(&code(&file)) {
            if other != module && group(&other).is_some_and(|group| group >= own) {
                wrong.push(format!("{} imports {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_is_one_thing() {
    let mut wrong = Vec::new();
    for file in all_rust_files() {
        let lines = code(&file).lines().filter(|line| !line.trim().is_empty()).count();
        if lines > CODE_LINES_MAX {
            wrong.push(format!("{} has {lines} lines of code, above {CODE_LINES_MAX}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_to_do() {
    let markers = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let mut wrong = Vec::new();
    for file in all_rust_files() {
        let text = fs::read_to_string(&file).unwrap();
        wrong.extend(
            markers
                .iter()
                .filter(|marker| text.contains(*marker))
                .map(|m| format!("{}: {m}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// As long as a reader bears, and true: what it calls a path or an item of ours is there.
#[test]
fn the_map_is_short_and_leads_somewhere() {
    let map = fs::read_to_string("ARCHITECTURE.md").unwrap();
    assert!(map.lines().count() <= MAP_LINES_MAX, "ARCHITECTURE.md has {} lines", map.lines().count());
    let all: String = all_rust_files().iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let is_item = |name: &str| {
        let defined = |what: &&str| all.contains(&format!("{what} {name}"));
        ["fn", "struct", "enum", "trait", "mod", "const", "type"].iter().any(defined)
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_/.:-".contains(c);
    let ours = quoted(&map).filter(|text| text.chars().all(is_word) && !text.starts_with('/'));
    let mut wrong = Vec::new();
    for text in ours {
        let leads = match text.rsplit_once("::") {
            Some(("it", story)) => Path::new("tests/it").join(format!("{story}.rs")).exists(),
            Some((_, name)) => is_item(name),
            None if text.contains('/') => ["", "src/"].iter().any(|dir| {
                let path = Path::new(dir).join(text);
                path.exists() || path.with_extension("rs").exists()
            }),
            // A file beside, or the word that stands behind the last dot.
            None => Path::new(text).exists() || all.contains(text.rsplit('.').next().unwrap_or(text)),
        };
        if !leads {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "ARCHITECTURE.md names what is not there: {wrong:?}");
}

#[test]
fn promises_name_tests_that_are_there() {
    let promises = fs::read_to_string("SPECIFICATION.md").unwrap();
    let has_tests = |path: &Path| {
        let mut files = rust_files(path);
        files.push(path.with_extension("rs"));
        let marks = ["#[test]", "#[tokio::test", "on_every_containerd!(", "on_every_docker!("];
        files
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .any(|text| marks.iter().any(|mark| text.contains(mark)))
    };
    let shown =
        quoted(&promises).filter_map(|text| text.split_once("::").map(|(kind, path)| (kind, path, text)));
    let mut wrong = Vec::new();
    for (kind, path, text) in shown {
        let path = path.replace("::", "/");
        let there = match kind {
            "it" => has_tests(&Path::new("tests/it").join(path)),
            "lib" => has_tests(&Path::new("src").join(path)),
            _ => true,
        };
        if !there {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "SPECIFICATION.md names tests that are not there: {wrong:?}");
}

/// What stands in backquotes, on one line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::oci;\nuse crate::{\n  mesh::{Mesh, Member},\n  piece::Chain, store,\n};\nfn f() { crate::unpack::run() }\npub(in crate::door) fn g() {}";
    assert_eq!(imports(text), ["oci", "mesh", "piece", "store", "unpack", "door"]);
}

fn group(module: &str) -> Option<usize> {
    GROUPS.iter().position(|group| group.contains(&module))
}

fn all_rust_files() -> Vec<PathBuf> {
    ["src", "tests", "examples", "xtask/src", "benches"]
        .iter()
        .flat_map(|dir| rust_files(Path::new(dir)))
        .collect()
}

/// The tests run in the package's folder.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A file without comments and without its tests, which stand at its end or in a file of their own.
fn code(file: &Path) -> String {
    if file.starts_with("src") && file.iter().any(|part| part == "tests" || part == "tests.rs") {
        return String::new();
    }
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules named behind `crate::`, in order.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => found.extend(first_names(list)),
            None => found.extend(name(rest)),
        }
    }
    found
}

/// The first name of each item of a list, up to the brace that closes it.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut item) = (0u32, Vec::new(), String::new());
    for letter in list.chars() {
        match letter {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(name(&std::mem::take(&mut item))),
            _ if depth == 0 => item.push(letter),
            _ => {}
        }
    }
    names.extend(name(&item));
    names
}

fn name(text: &str) -> Option<String> {
    let name: String = text.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}
