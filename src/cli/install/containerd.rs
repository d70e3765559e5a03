//! containerd's settings.
//!
//! The proxy plugin stands in a drop-in of ours that the main file imports. On 2.x everything else does, too. 1.6 and
//! 1.7 replace a whole plugin section by the one that an import has (`services/server/config`, `mergeConfig`), so there
//! the snapshotter of the CRI plugin, and 1.7's list of snapshotters to unpack with, are set in the main file, key by key.
//!
//! The drop-in has the main file's version: containerd migrates what it has merged, not each file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::{
    files::{Backup, Change, backup_of},
    imports, parse, read,
};
use crate::containerd::Version;

/// The name of the proxy plugin, and so of the snapshotter.
const SNAPSHOTTER: &str = "flotilla";

const HEADER: &str =
    "# Written by `flotilla install --containerd`; `flotilla uninstall --containerd` removes it.\n";

/// CRI's settings on 1.6 and 1.7, and on 2.x.
const CRI_1: [&str; 3] = ["plugins", "io.containerd.grpc.v1.cri", "containerd"];
const CRI_2: [&str; 2] = ["plugins", "io.containerd.cri.v1.images"];
const TRANSFER: [&str; 2] = ["plugins", "io.containerd.transfer.v1.local"];

/// What containerd imports from 2.2 on as long as it has no settings file at all (`DefaultConfigIncludePattern`).
const IMPORTS_WITHOUT_FILE: &str = "/etc/containerd/conf.d/*.toml";

/// What the settings depend on.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) version: Version,
    /// The plugin's socket.
    pub(super) socket: PathBuf,
    /// Where the snapshots lie.
    pub(super) root: PathBuf,
    /// Whether containerd is to pull by the snapshotter, or by the mirror alone.
    pub(super) snapshotter: bool,
}

/// Where a containerd from 2.2 on looks for hosts.toml folders without being told, and in Docker's folder after it.
const HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// Where CRI's registry settings may stand.
const REGISTRY: [&[&str]; 2] = [
    &["plugins", "io.containerd.grpc.v1.cri", "registry"],
    &["plugins", "io.containerd.cri.v1.images", "registry"],
];

/// Where containerd finds hosts.toml folders, or will.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HostsDir {
    /// Its settings say so.
    Said(PathBuf),
    /// Its settings say several, of which this is the first. CRI's pulls from 2.1 on hand the list to the transfer service,
    /// which takes it for one folder and finds nothing (`transfer/registry`, `WithHostDir`).
    List(PathBuf),
    /// Nothing is said; it must be told. What it looks at by itself from 2.2 on is such a list.
    Unsaid(PathBuf),
    /// Nothing is said, and CRI pulls by itself, which splits such a list.
    Default(PathBuf),
    /// Its settings have `registry.mirrors` or `registry.configs`, beside which it refuses `config_path`.
    Refused,
}

/// Where the containerd of the settings file `config` finds hosts.toml folders: as the file says, or another that it
/// imports. What our drop-in says does not count.
pub(super) fn hosts_dir(config: &Path) -> anyhow::Result<HostsDir> {
    let mut found = HostsDir::Unsaid(config.parent().unwrap_or(Path::new("/")).join("certs.d"));
    let documents = imports::documents(config, &drop_in_of(config))?;
    let registries =
        |document| REGISTRY.iter().filter_map(|names| lookup(document, names)).collect::<Vec<_>>();
    for registry in documents.iter().flat_map(registries) {
        let full = |key: &str| registry.get(key).and_then(Item::as_table_like).is_some_and(|t| !t.is_empty());
        if full("mirrors") || full("configs") {
            return Ok(HostsDir::Refused);
        }
        let path = registry.get("config_path").and_then(Item::as_str).unwrap_or_default();
        let mut folders = path.split(':').filter(|path| !path.is_empty());
        found = match (folders.next(), folders.next()) {
            (Some(only), None) => HostsDir::Said(only.into()),
            (Some(first), Some(_)) => HostsDir::List(first.into()),
            (None, _) => continue,
        };
    }
    Ok(match (found, documents.iter().any(pulls_by_cri)) {
        (HostsDir::List(first), true) => HostsDir::Said(first),
        (HostsDir::Unsaid(dir), true) => HostsDir::Default(dir),
        (found, _) => found,
    })
}

/// Whether a file says something with which CRI does not leave pulls to the transfer service (`cri/config`,
/// `CheckLocalImagePullConfigs`).
fn pulls_by_cri(document: &DocumentMut) -> bool {
    let sections = [&CRI_1[..2], &CRI_1[..], &CRI_2[..]];
    sections.iter().filter_map(|names| lookup(document, names)).any(|section| {
        let is = |key: &str, value: bool| section.get(key).and_then(Item::as_bool) == Some(value);
        let downloads = section.get("max_concurrent_downloads").and_then(Item::as_integer);
        is("use_local_image_pull", true)
            || is("discard_unpacked_layers", true)
            || is("image_pull_with_sync_fs", true)
            || is("disable_snapshot_annotations", false)
            || downloads.is_some_and(|downloads| downloads != 3)
    })
}

/// Whether `config`, or another file that it imports, turns CRI off, as that of Docker's packages does.
pub(super) fn disables_cri(config: &Path) -> anyhow::Result<bool> {
    let turns_off = |document: &DocumentMut| {
        let disabled = document.get("disabled_plugins").and_then(Item::as_array);
        let names = disabled.into_iter().flatten().filter_map(|name| name.as_str());
        let is_cri =
            |name| matches!(name, "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.images");
        names.into_iter().any(is_cri)
    };
    Ok(imports::documents(config, &drop_in_of(config))?.iter().any(turns_off))
}

impl Node {
    /// The folder that containerd must be told of.
    fn config_path(&self, hosts: &HostsDir) -> Option<String> {
        let version = (self.version.major, self.version.minor);
        match hosts {
            HostsDir::Default(dir) if dir == Path::new(HOSTS_DIR) && version >= (2, 2) => None,
            HostsDir::Unsaid(dir) | HostsDir::Default(dir) => Some(dir.display().to_string()),
            HostsDir::List(first) if self.version.takes_one_hosts_dir() => Some(first.display().to_string()),
            HostsDir::List(_) | HostsDir::Said(_) | HostsDir::Refused => None,
        }
    }
}

/// Whether our snapshotter is entered already.
pub(super) fn has_snapshotter(config: &Path) -> anyhow::Result<bool> {
    Ok(read(&drop_in_of(config))?.is_some_and(|text| has_plugin(&text)))
}

fn has_plugin(drop_in: &str) -> bool {
    drop_in.contains("[proxy_plugins.")
}

/// Where the drop-in of `config` lies.
fn drop_in_of(config: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("/")).join("conf.d").join("flotilla.toml")
}

pub(super) fn install(config: &Path, node: &Node) -> anyhow::Result<Vec<Change>> {
    let before = read(config)?;
    let drop_in = drop_in_of(config);
    let config_path = node.config_path(&hosts_dir(config)?);
    // What was installed with the snapshotter keeps it.
    let had = has_snapshotter(config)?;
    let node = &Node { snapshotter: node.snapshotter || had, ..node.clone() };
    let in_drop_in = node.version.major >= 2 && config_path.is_some();
    if !node.snapshotter && !in_drop_in {
        let after = match &config_path {
            Some(path) => with_config_path(config, before.as_deref(), path)?,
            None => return Ok(Vec::new()),
        };
        let after = Some(after);
        return Ok(vec![Change { path: config.to_owned(), before, after, backup: Backup::Make }]);
    }
    let after = with_flotilla(config, before.as_deref(), node, &drop_in)?;
    let after = match &config_path {
        Some(path) if node.version.major < 2 => with_config_path(config, Some(&after), path)?,
        Some(_) | None => after,
    };
    let file_version = version_of(&parse(config, &after)?);
    // A drop-in of ours that names the folder goes on to name it.
    let ours = drop_in_text(node, file_version, config_path.as_deref());
    let there = read(&drop_in)?;
    // One that we have written is replaced by today's, somebody else's is kept.
    let backup = if there.as_deref().is_some_and(is_foreign) { Backup::Make } else { Backup::Leave };
    Ok(vec![
        Change { before: there, path: drop_in, after: Some(ours), backup },
        Change { path: config.to_owned(), before, after: Some(after), backup: Backup::Make },
    ])
}

pub(super) fn uninstall(config: &Path) -> anyhow::Result<Vec<Change>> {
    let drop_in = drop_in_of(config);
    let before = read(config)?;
    let original = read(&backup_of(config))?;
    let is_ours = before.as_deref().is_some_and(|text| text.starts_with(HEADER));
    if original.is_none() && read(&drop_in)?.is_none() && !is_ours {
        // Never installed: whatever the file says is its owner's.
        return Ok(Vec::new());
    }
    let current = before.clone().unwrap_or_default();
    let without = without_flotilla(config, &current, original.as_deref(), &drop_in)?;
    let (after, backup) = match original {
        Some(original) if same_settings(config, &without, &original) => (Some(original), Backup::Remove),
        Some(_) => (Some(without), Backup::Drop),
        None if without.trim().is_empty() => (None, Backup::Leave),
        None => (before.is_some().then_some(without), Backup::Leave),
    };
    Ok(vec![Change { path: config.to_owned(), before, after, backup }, without_drop_in(drop_in)?])
}

/// A file of this name that is not of ours.
fn is_foreign(text: &str) -> bool {
    !text.starts_with(HEADER)
}

/// Takes our drop-in away; what was there before it comes back.
fn without_drop_in(drop_in: PathBuf) -> anyhow::Result<Change> {
    let (there, original) = (read(&drop_in)?, read(&backup_of(&drop_in))?);
    let (after, backup) = match original {
        Some(original) => (Some(original), Backup::Remove),
        None => (there.clone().filter(|text| is_foreign(text)), Backup::Leave),
    };
    Ok(Change { before: there, path: drop_in, after, backup })
}

/// Takes out what tells containerd of the mirror, and nothing of the snapshotter.
pub(super) fn uninstall_mirror(config: &Path) -> anyhow::Result<Vec<Change>> {
    let drop_in = drop_in_of(config);
    let Some(ours) = read(&drop_in)?.filter(|text| has_plugin(text)) else { return uninstall(config) };
    let mut changes = Vec::new();
    let mut document = parse(&drop_in, &ours)?;
    for section in REGISTRY {
        if let Some(registry) = find(&mut document, section) {
            registry.remove("config_path");
            remove_empty(&mut document, &DocumentMut::new(), section);
        }
    }
    let after = Some(document.to_string());
    changes.push(Change { path: drop_in, before: Some(ours), after, backup: Backup::Leave });
    if let Some(before) = read(config)? {
        let original = read(&backup_of(config))?.map(|original| parse(config, &original)).transpose()?;
        let mut document = parse(config, &before)?;
        forget_hosts_dir(config, &mut document, &original.unwrap_or_default());
        let after = Some(document.to_string());
        changes.push(Change { path: config.to_owned(), before: Some(before), after, backup: Backup::Leave });
    }
    Ok(changes)
}

/// The main file of an old containerd, told where hosts.toml folders are.
fn with_config_path(path: &Path, before: Option<&str>, hosts_dir: &str) -> anyhow::Result<String> {
    let mut document = parse(path, before.unwrap_or(""))?;
    if document.is_empty() {
        document["version"] = value(2);
    }
    table(&mut document, REGISTRY[0])?["config_path"] = value(hosts_dir);
    let header = if before.is_none() { HEADER } else { "" };
    Ok(format!("{header}{document}"))
}

fn same_settings(path: &Path, a: &str, b: &str) -> bool {
    let plain = |text| {
        parse(path, text).ok().and_then(|document| toml::from_str::<toml::Table>(&document.to_string()).ok())
    };
    plain(a).is_some_and(|a| Some(a) == plain(b))
}

fn version_of(document: &DocumentMut) -> i64 {
    document.get("version").and_then(Item::as_integer).unwrap_or(1)
}

/// The main file with our entries.
fn with_flotilla(path: &Path, before: Option<&str>, node: &Node, drop_in: &Path) -> anyhow::Result<String> {
    let mut document = parse(path, before.unwrap_or(""))?;
    if document.is_empty() {
        let newest = if node.version.major >= 2 { 3 } else { 2 };
        document["version"] = value(newest);
    }
    let version = version_of(&document);
    if version < 2 {
        let mend = match node.version.major {
            ..2 => "begin it with `version = 2`, and name its sections as `containerd config default` does",
            2.. => "`containerd config migrate` makes a newer one of it",
        };
        bail!("{} is of version {version}, which containerd 1.6 deprecated; {mend}", path.display());
    }
    if node.version.major < 2 && node.snapshotter {
        let cri = table(&mut document, &CRI_1)?;
        cri["snapshotter"] = value(SNAPSHOTTER);
        cri["disable_snapshot_annotations"] = value(false);
    }
    if (node.version.major, node.version.minor) == (1, 7) && node.snapshotter {
        unpack_with_flotilla(table(&mut document, &TRANSFER)?)?;
    }
    let mut imports = Array::new();
    if before.is_none() && (node.version.major, node.version.minor) >= (2, 2) {
        // Other drop-ins stay in force when there is a file of ours.
        imports.push(IMPORTS_WITHOUT_FILE);
    }
    let imports = document.entry("imports").or_insert_with(|| value(imports));
    let imports =
        imports.as_array_mut().with_context(|| format!("{}: imports is no list", path.display()))?;
    let named = drop_in.display().to_string();
    if !imports.iter().any(|import| import.as_str().is_some_and(|import| covers(path, import, drop_in))) {
        imports.push(named);
    }
    Ok(document.to_string())
}

/// 1.7's transfer service, which `nerdctl load` uses, unpacks only with the snapshotters of this list. 2.x has it in the
/// drop-in.
fn unpack_with_flotilla(transfer: &mut Table) -> anyhow::Result<()> {
    let entries = transfer.entry("unpack_config").or_insert_with(|| {
        let mut stock = ArrayOfTables::new();
        stock.push(unpack_entry("overlayfs"));
        Item::ArrayOfTables(stock)
    });
    let entries = entries.as_array_of_tables_mut();
    let entries = entries.context("containerd's settings: unpack_config is no list of tables")?;
    if !entries.iter().any(is_unpack_entry_of_ours) {
        entries.push(unpack_entry(SNAPSHOTTER));
    }
    Ok(())
}

fn unpack_entry(snapshotter: &str) -> Table {
    let mut entry = Table::new();
    entry["platform"] = value(format!("linux/{}", architecture()));
    entry["snapshotter"] = value(snapshotter);
    entry["differ"] = value("walking");
    entry
}

fn is_unpack_entry_of_ours(entry: &Table) -> bool {
    entry.get("snapshotter").and_then(Item::as_str) == Some(SNAPSHOTTER)
}

/// Whether the import `pattern` of the file `config` takes in `drop_in`.
fn covers(config: &Path, pattern: &str, drop_in: &Path) -> bool {
    let pattern = config.parent().unwrap_or(Path::new("/")).join(pattern);
    let all = pattern.file_name().is_some_and(|name| name == "*.toml" || name == "*");
    pattern == drop_in || (all && pattern.parent() == drop_in.parent())
}

/// The main file without our entries; what they replaced comes from `original`.
fn without_flotilla(
    path: &Path,
    text: &str,
    original: Option<&str>,
    drop_in: &Path,
) -> anyhow::Result<String> {
    let mut document = parse(path, text)?;
    let original = original.map(|original| parse(path, original)).transpose()?.unwrap_or_default();
    let named = drop_in.display().to_string();
    if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) {
        let before_len = imports.len();
        imports.retain(|import| import.as_str() != Some(&named));
        let ours_alone = imports.is_empty() && before_len > 0;
        if ours_alone && original.get("imports").is_none() {
            document.remove("imports");
        }
    }
    if let Some(cri) = find(&mut document, &CRI_1)
        && cri.get("snapshotter").and_then(Item::as_str) == Some(SNAPSHOTTER)
    {
        for key in ["snapshotter", "disable_snapshot_annotations"] {
            match lookup(&original, &CRI_1).and_then(|cri| cri.get(key)) {
                Some(old) => cri[key] = old.clone(),
                None => drop(cri.remove(key)),
            }
        }
    }
    if let Some(transfer) = find(&mut document, &TRANSFER)
        && let Some(entries) = transfer.get_mut("unpack_config").and_then(Item::as_array_of_tables_mut)
        && entries.iter().any(is_unpack_entry_of_ours)
    {
        entries.retain(|entry| !is_unpack_entry_of_ours(entry));
        if lookup(&original, &TRANSFER).is_none_or(|transfer| transfer.get("unpack_config").is_none()) {
            transfer.remove("unpack_config");
        }
    }
    forget_hosts_dir(path, &mut document, &original);
    remove_empty(&mut document, &original, &CRI_1);
    remove_empty(&mut document, &original, &TRANSFER);
    let bare =
        document.iter().all(|(key, item)| key == "version" || is_bare(item) || is_import_of_none(key, item));
    let after = document.to_string();
    // A file in which nothing was ours stays, however little is in it.
    if bare && original.is_empty() && after != text {
        return Ok(String::new());
    }
    Ok(after)
}

/// Takes the `config_path` out of an old containerd's main file that we have set.
fn forget_hosts_dir(path: &Path, document: &mut DocumentMut, original: &DocumentMut) {
    let beside = path.parent().unwrap_or(Path::new("/")).join("certs.d").display().to_string();
    if let Some(registry) = find(document, REGISTRY[0])
        && registry.get("config_path").and_then(Item::as_str) == Some(&beside)
    {
        match lookup(original, REGISTRY[0]).and_then(|registry| registry.get("config_path")) {
            Some(old) => registry["config_path"] = old.clone(),
            None => drop(registry.remove("config_path")),
        }
    }
    remove_empty(document, original, REGISTRY[0]);
}

/// Removes the tables along `names` that are empty now and that `original` has not.
fn remove_empty(document: &mut DocumentMut, original: &DocumentMut, names: &[&str]) {
    for (at, name) in names.iter().enumerate().rev() {
        let of_ours = lookup(original, &names[..=at]).is_none();
        if of_ours
            && lookup(document, &names[..=at]).is_some_and(Table::is_empty)
            && let Some(table) = find(document, &names[..at])
        {
            table.remove(name);
        }
    }
}

/// What we have written for a containerd without a settings file.
fn is_import_of_none(key: &str, item: &Item) -> bool {
    let imports = item.as_array().filter(|_| key == "imports");
    imports.is_some_and(|imports| imports.iter().all(|import| import.as_str() == Some(IMPORTS_WITHOUT_FILE)))
}

/// A table with nothing but tables of that kind in it.
fn is_bare(item: &Item) -> bool {
    item.as_table().is_some_and(|table| table.iter().all(|(_, item)| is_bare(item)))
}

/// The table at `names`, made where it is missing.
fn table<'a>(document: &'a mut DocumentMut, names: &[&str]) -> anyhow::Result<&'a mut Table> {
    let mut table = document.as_table_mut();
    for name in names {
        let item = table.entry(name).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        table = item.as_table_mut().with_context(|| format!("containerd's settings: {name} is no table"))?;
    }
    Ok(table)
}

fn find<'a>(document: &'a mut DocumentMut, names: &[&str]) -> Option<&'a mut Table> {
    let mut table = document.as_table_mut();
    for name in names {
        table = table.get_mut(name)?.as_table_mut()?;
    }
    Some(table)
}

fn lookup<'a>(document: &'a DocumentMut, names: &[&str]) -> Option<&'a Table> {
    let mut table = document.as_table();
    for name in names {
        table = table.get(name)?.as_table()?;
    }
    Some(table)
}

/// Our own file.
fn drop_in_text(node: &Node, file_version: i64, hosts_dir: Option<&str>) -> String {
    let mut document = DocumentMut::new();
    document["version"] = value(file_version);
    let named = "a table of a new document";
    if let Some(hosts_dir) = hosts_dir.filter(|_| node.version.major >= 2) {
        // Migrating a file of version 2, containerd 2.1 lets the old section win.
        let section = if file_version == 2 { REGISTRY[0] } else { REGISTRY[1] };
        table(&mut document, section).expect(named)["config_path"] = value(hosts_dir);
    }
    if !node.snapshotter {
        return format!("{HEADER}{document}");
    }
    let plugin = table(&mut document, &["proxy_plugins", SNAPSHOTTER]).expect(named);
    plugin["type"] = value("snapshot");
    plugin["address"] = value(node.socket.display().to_string());
    let exports = table(&mut document, &["proxy_plugins", SNAPSHOTTER, "exports"]).expect(named);
    exports["root"] = value(node.root.display().to_string());
    exports["enable_remote_snapshot_annotations"] = value("true");
    if node.version.major >= 2 {
        // The new name in files of version 2 as well: of CRI's old settings containerd migrates the snapshotter only
        // where they name runtimes (`plugins/cri/images/plugin.go`, `migrateConfig`).
        table(&mut document, &CRI_2).expect(named)["snapshotter"] = value(SNAPSHOTTER);
        let mut unpack = ArrayOfTables::new();
        for snapshotter in ["overlayfs", SNAPSHOTTER] {
            unpack.push(unpack_entry(snapshotter));
        }
        table(&mut document, &TRANSFER).expect(named)["unpack_config"] = Item::ArrayOfTables(unpack);
    }
    format!("{HEADER}{document}")
}

/// This machine's architecture as containerd names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(version: &str) -> Node {
        Node {
            version: version.parse().unwrap(),
            socket: "/run/flotilla/snapshots.sock".into(),
            root: "/var/lib/containerd/io.containerd.snapshotter.v1.flotilla".into(),
            snapshotter: true,
        }
    }

    /// A folder with a settings file of containerd's.
    fn machine(text: Option<&str>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        if let Some(text) = text {
            std::fs::write(&config, text).unwrap();
        }
        (dir, config)
    }

    #[test]
    fn a_containerd_of_dockers_packages_has_no_cri() {
        let (_dir, config) = machine(Some("disabled_plugins = [\"cri\"]\n"));
        assert!(disables_cri(&config).unwrap());
        let (_dir, config) =
            machine(Some("version = 2\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n"));
        assert!(!disables_cri(&config).unwrap());
        let (_dir, config) = machine(None);
        assert!(!disables_cri(&config).unwrap());
    }

    fn apply(changes: &[Change]) {
        for change in changes.iter().filter(|change| change.is_needed()) {
            change.apply().unwrap();
        }
    }

    const WITH_COMMENTS: &str = r#"# ours since 2019
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause:3.9" # pinned
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"#;

    #[test]
    fn an_old_containerd_keeps_its_comments_and_its_other_keys() {
        let (_dir, config) = machine(Some(WITH_COMMENTS));
        apply(&install(&config, &node("1.6.20~ds1")).unwrap());
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains("# ours since 2019") && text.contains("\"pause:3.9\" # pinned"), "{text}");
        assert!(
            text.contains("snapshotter = \"flotilla\"")
                && text.contains("disable_snapshot_annotations = false")
        );
        let drop_in = std::fs::read_to_string(drop_in_of(&config)).unwrap();
        assert!(drop_in.contains("version = 2") && !drop_in.contains("transfer"), "{drop_in}");
        let again = install(&config, &node("1.6.20~ds1")).unwrap();
        assert!(again.iter().all(|change| !change.is_needed()), "a second time changes nothing");
    }

    #[test]
    fn a_drop_in_of_an_older_flotilla_is_replaced() {
        for version in ["1.6.20", "1.7.24", "2.1.4", "2.4.2"] {
            let (_dir, config) = machine(Some(WITH_COMMENTS));
            let before = Node { socket: "/run/old/snapshots.sock".into(), ..node(version) };
            apply(&install(&config, &before).unwrap());
            // What it did not write yet.
            let drop_in = drop_in_of(&config);
            let older = read(&drop_in).unwrap().unwrap().replace("enable_remote_snapshot_annotations", "was");
            std::fs::write(&drop_in, older).unwrap();
            let changes = install(&config, &node(version)).unwrap();
            let diff = changes[0].diff();
            assert!(
                diff.contains("-address = \"/run/old") && diff.contains("+address = \"/run/flo"),
                "{diff}"
            );
            assert!(!changes[1].is_needed(), "{version}: {}", changes[1].diff());
            apply(&changes);
            let (_other, clean) = machine(Some(WITH_COMMENTS));
            apply(&install(&clean, &node(version)).unwrap());
            let text = |config: &Path| read(&drop_in_of(config)).unwrap().unwrap();
            let dir = |config: &Path| config.parent().unwrap().display().to_string();
            assert_eq!(text(&config).replace(&dir(&config), ""), text(&clean).replace(&dir(&clean), ""));
            apply(&uninstall(&config).unwrap());
            assert_eq!(read(&config).unwrap().as_deref(), Some(WITH_COMMENTS), "{version}");
            assert!(!drop_in.exists() && !backup_of(&drop_in).exists());
        }
    }

    #[test]
    fn somebody_elses_file_of_our_drop_ins_name_comes_back() {
        let (_dir, config) = machine(Some(WITH_COMMENTS));
        let drop_in = drop_in_of(&config);
        std::fs::create_dir(drop_in.parent().unwrap()).unwrap();
        let theirs = "version = 2\n# somebody's\n";
        std::fs::write(&drop_in, theirs).unwrap();
        apply(&uninstall(&config).unwrap());
        assert_eq!(read(&drop_in).unwrap().as_deref(), Some(theirs), "never installed");
        for _ in 0..2 {
            apply(&install(&config, &node("2.1.4")).unwrap());
        }
        assert!(read(&drop_in).unwrap().unwrap().starts_with(HEADER));
        apply(&uninstall(&config).unwrap());
        assert_eq!(read(&drop_in).unwrap().as_deref(), Some(theirs));
        assert!(!backup_of(&drop_in).exists());
        apply(&uninstall(&config).unwrap());
        assert_eq!(read(&drop_in).unwrap().as_deref(), Some(theirs), "once more");
    }

    #[test]
    fn no_capability_is_advertised() {
        // With `rebase` pulls lose snapshots, silently.
        for version in ["1.6.20", "1.7.24", "2.1.4", "2.4.2"] {
            let (_dir, config) = machine(Some(WITH_COMMENTS));
            apply(&install(&config, &node(version)).unwrap());
            let both = read(&config).unwrap().unwrap() + &read(&drop_in_of(&config)).unwrap().unwrap();
            assert!(!both.contains("capabilities") && !both.contains("rebase"), "{version}: {both}");
        }
    }

    #[test]
    fn uninstalling_gives_back_every_byte() {
        for version in ["1.6.20", "1.7.24", "2.1.4", "v2.4.2"] {
            let nothing_of_ours = "version = 2\nimports = []\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n";
            for text in [Some(WITH_COMMENTS), Some(nothing_of_ours), None] {
                let (_dir, config) = machine(text);
                apply(&install(&config, &node(version)).unwrap());
                assert!(config.exists());
                apply(&uninstall(&config).unwrap());
                assert_eq!(read(&config).unwrap().as_deref(), text, "{version}");
                assert!(!drop_in_of(&config).exists() && !backup_of(&config).exists());
                let again = uninstall(&config).unwrap();
                assert!(again.iter().all(|change| !change.is_needed()), "{version}: {again:?}");
            }
        }
    }

    #[test]
    fn what_the_operator_changed_since_stays() {
        let (_dir, config) = machine(Some(WITH_COMMENTS));
        apply(&install(&config, &node("1.7.24")).unwrap());
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("pause:3.9", "pause:3.10")).unwrap();
        apply(&uninstall(&config).unwrap());
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains("pause:3.10") && text.contains("snapshotter = \"overlayfs\""), "{text}");
        assert!(!text.contains("flotilla") && !text.contains("disable_snapshot_annotations"), "{text}");
    }

    #[test]
    fn a_new_containerd_needs_one_line_in_its_own_file() {
        let (_dir, config) = machine(None);
        let changes = install(&config, &node("2.1.4")).unwrap();
        assert!(changes[1].diff().contains("+imports = [") && changes[1].diff().contains("+version = 3"));
        let drop_in = changes[0].after.as_deref().unwrap();
        for wanted in [
            "enable_remote_snapshot_annotations = \"true\"",
            "io.containerd.cri.v1.images",
            "snapshotter = \"overlayfs\"",
        ] {
            assert!(drop_in.contains(wanted), "{drop_in}");
        }
        let (_dir, config) = machine(Some("version = 2\nimports = [\"conf.d/*.toml\"]\n"));
        let changes = install(&config, &node("2.1.4")).unwrap();
        assert!(!changes[1].is_needed(), "the import is there already");
        let drop_in = changes[0].after.as_deref().unwrap();
        assert!(
            drop_in.contains("version = 2") && drop_in.contains("io.containerd.cri.v1.images"),
            "{drop_in}"
        );
    }

    #[test]
    fn the_first_settings_file_keeps_other_drop_ins_in_force() {
        for (version, kept) in [("2.1.4", false), ("2.2.0", true), ("2.4.2", true)] {
            let (_dir, config) = machine(None);
            let changes = install(&config, &node(version)).unwrap();
            let text = changes[1].after.as_deref().unwrap();
            assert_eq!(text.contains(IMPORTS_WITHOUT_FILE), kept, "{text}");
        }
    }

    #[test]
    fn containerd_1_7_unpacks_with_what_it_had_and_with_us() {
        let listed = "version = 2\n[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                      platform = \"linux/amd64\"\nsnapshotter = \"stargz\"\n";
        for (text, other) in [(WITH_COMMENTS, "overlayfs"), (listed, "stargz")] {
            let (_dir, config) = machine(Some(text));
            apply(&install(&config, &node("1.7.24")).unwrap());
            let installed: toml::Table = toml::from_str(&read(&config).unwrap().unwrap()).unwrap();
            let entries = installed["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"].as_array();
            let names: Vec<_> = entries.unwrap().iter().map(|e| e["snapshotter"].as_str().unwrap()).collect();
            assert_eq!(names, [other, SNAPSHOTTER]);
            apply(&uninstall(&config).unwrap());
            assert_eq!(read(&config).unwrap().as_deref(), Some(text));
        }
    }

    #[test]
    fn containerd_is_told_where_hosts_toml_lies_unless_it_says_so_or_refuses() {
        let said = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n";
        let mirrors = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = []\n";
        let (_dir, config) = machine(Some(said));
        assert_eq!(hosts_dir(&config).unwrap(), HostsDir::List("/a".into()));
        apply(&install(&config, &node("1.7.24")).unwrap());
        assert!(read(&config).unwrap().unwrap().contains("config_path = \"/a:/b\""), "1.7 splits it");
        let local = format!("{said}[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = true\n");
        let (_dir, config) = machine(Some(&local));
        assert_eq!(hosts_dir(&config).unwrap(), HostsDir::Said("/a".into()));
        // With these CRI pulls by itself as well.
        for (key, by_cri, by_transfer) in [
            ("discard_unpacked_layers", "true", "false"),
            ("max_concurrent_downloads", "5", "3"),
            ("disable_snapshot_annotations", "false", "true"),
        ] {
            let found = |value: &str| {
                let line = format!("{key} = {value}");
                let (_dir, config) = machine(Some(&local.replace("use_local_image_pull = true", &line)));
                hosts_dir(&config).unwrap()
            };
            assert_eq!(found(by_cri), HostsDir::Said("/a".into()), "{key}");
            assert_eq!(found(by_transfer), HostsDir::List("/a".into()), "{key}");
        }
        let (_dir, config) = machine(Some(said));
        apply(&install(&config, &node("2.0.4")).unwrap());
        assert!(!read(&drop_in_of(&config)).unwrap().unwrap().contains("config_path"), "2.0 splits it");
        let (_dir, config) = machine(Some(mirrors));
        assert_eq!(hosts_dir(&config).unwrap(), HostsDir::Refused);
        apply(&install(&config, &node("1.7.24")).unwrap());
        assert!(!read(&config).unwrap().unwrap().contains("config_path"));
        for version in ["1.6.20", "1.7.24", "2.1.4", "2.4.2"] {
            for snapshotter in [true, false] {
                let (_dir, config) = machine(Some(WITH_COMMENTS));
                apply(&install(&config, &Node { snapshotter, ..node(version) }).unwrap());
                let drop_in = read(&drop_in_of(&config)).unwrap().unwrap_or_default();
                let both = read(&config).unwrap().unwrap() + &drop_in;
                assert!(both.contains("config_path = ") && both.contains("/certs.d\""), "{version}: {both}");
                assert_eq!(both.contains("snapshotter = \"flotilla\""), snapshotter, "{version}: {both}");
                apply(&uninstall(&config).unwrap());
                assert_eq!(read(&config).unwrap().as_deref(), Some(WITH_COMMENTS), "{version}");
                let (_dir, config) = machine(None);
                apply(&install(&config, &Node { snapshotter, ..node(version) }).unwrap());
                apply(&uninstall(&config).unwrap());
                assert_eq!(read(&config).unwrap(), None, "{version}");
            }
        }
    }

    #[test]
    fn what_imported_files_say_of_registries_counts() {
        let cri = "plugins.\"io.containerd.grpc.v1.cri\".registry";
        let mirrors = format!("version = 2\n[{cri}.mirrors.\"docker.io\"]\nendpoint = []\n");
        let said = format!("version = 2\n[{cri}]\nconfig_path = \"/a:/b\"\n");
        for (text, wanted) in [(mirrors, HostsDir::Refused), (said, HostsDir::List("/a".into()))] {
            for main in [Some("version = 2\nimports = [\"conf.d/*.toml\"]\n"), None] {
                let (dir, config) = machine(main);
                std::fs::create_dir(dir.path().join("conf.d")).unwrap();
                std::fs::write(dir.path().join("conf.d/50-theirs.toml"), &text).unwrap();
                assert_eq!(hosts_dir(&config).unwrap(), wanted);
                apply(&install(&config, &node("2.1.4")).unwrap());
                let drop_in = read(&drop_in_of(&config)).unwrap().unwrap();
                let is_list = matches!(wanted, HostsDir::List(_));
                assert_eq!(drop_in.contains("config_path = \"/a\""), is_list, "{drop_in}");
            }
        }
    }

    #[test]
    fn the_mirror_is_taken_out_without_the_snapshotter() {
        for version in ["1.6.20", "1.7.24", "2.1.4"] {
            let (_dir, config) = machine(Some(WITH_COMMENTS));
            apply(&install(&config, &node(version)).unwrap());
            apply(&uninstall_mirror(&config).unwrap());
            let both = read(&config).unwrap().unwrap() + &read(&drop_in_of(&config)).unwrap().unwrap();
            assert!(!both.contains("config_path") && !both.contains("registry"), "{version}: {both}");
            assert!(both.contains("snapshotter = \"flotilla\"") && both.contains("snapshots.sock"), "{both}");
            assert!(uninstall_mirror(&config).unwrap().iter().all(|change| !change.is_needed()));
            apply(&uninstall(&config).unwrap());
            assert_eq!(read(&config).unwrap().as_deref(), Some(WITH_COMMENTS), "{version}");
            let (_dir, config) = machine(Some(WITH_COMMENTS));
            apply(&install(&config, &Node { snapshotter: false, ..node(version) }).unwrap());
            apply(&uninstall_mirror(&config).unwrap());
            assert_eq!(
                read(&config).unwrap().as_deref(),
                Some(WITH_COMMENTS),
                "{version}: it was all there was"
            );
        }
    }

    #[test]
    fn settings_that_cannot_be_read_are_left_alone() {
        let (_dir, config) = machine(Some("version = 1\n"));
        assert!(
            install(&config, &node("1.6.20"))
                .unwrap_err()
                .to_string()
                .contains("begin it with `version = 2`")
        );
        let (_dir, config) = machine(Some("[broken"));
        assert!(install(&config, &node("1.6.20")).unwrap_err().to_string().contains("is not TOML"));
    }
}
