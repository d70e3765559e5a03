//! Scenarios about the tree that a container sees.

use std::{os::unix::fs::MetadataExt, time::Duration};

use crate::snapshots::{
    mounting::Mounted,
    plugin::Plugin,
    tree::{Change, apply, dir, file, look},
};

/// Builds one layer a list of changes and checks each through a view against the same changes made to a
/// plain directory.
async fn build(plugin: &Plugin, layers: &[Vec<Change>]) {
    let plain = plugin.place();
    let mut parent = String::new();
    for changes in layers {
        let (active, name) = (plugin.name("active"), plugin.name("layer"));
        let mounts = plugin.prepare(&active, &parent).await.unwrap();
        {
            let mounted = Mounted::new(&mounts, &plugin.place());
            apply(mounted.path(), changes);
        }
        plugin.commit(&name, &active).await.unwrap();
        apply(&plain, changes);
        expect_view(plugin, &name, &plain).await;
        parent = name;
    }
}

async fn expect_view(plugin: &Plugin, name: &str, plain: &std::path::Path) {
    let key = plugin.name("view");
    let mounts = plugin.view(&key, name).await.unwrap();
    {
        let mounted = Mounted::new(&mounts, &plugin.place());
        assert_eq!(look(mounted.path()), look(plain));
    }
    plugin.remove(&key).await.unwrap();
}

pub(super) async fn a_file_is_updated_in_an_upper_layer(plugin: &Plugin) {
    let lower = vec![
        dir("etc", 0o700),
        file("etc/hosts", "mydomain 10.0.0.1", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o644),
    ];
    let upper = vec![
        // As long as the old content and, on a coarse clock, as old: neither may hide the change.
        file("etc/hosts", "mydomain 10.0.0.2", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o666),
        dir("root", 0o700),
        file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
    ];
    for _ in 0..5 {
        build(plugin, &[lower.clone(), upper.clone()]).await;
    }
}

pub(super) async fn a_directory_is_removed_and_made_anew(plugin: &Plugin) {
    let layers = [
        vec![dir("lib", 0o700), file("lib/hidden", "", 0o644)],
        vec![Change::Remove("lib"), dir("lib", 0o700), file("lib/not-hidden", "", 0o644)],
        vec![file("lib/newfile", "", 0o644)],
    ];
    build(plugin, &layers).await;
}

pub(super) async fn owners_change_in_an_upper_layer(plugin: &Plugin) {
    let paths = ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"];
    let mut lower: Vec<Change> = paths[..3].iter().map(|&path| dir(path, 0o700)).collect();
    lower.push(file(paths[3], "hello", 0o644));
    let upper = paths.map(|path| Change::Own(path, 1)).to_vec();
    build(plugin, &[lower, upper]).await;
}

pub(super) async fn owners_and_modes_of_directories_survive_a_commit(plugin: &Plugin) {
    let mut lower: Vec<Change> = (1..=5).map(|n| dir(format!("dir{n}"), 0o700)).collect();
    lower.extend([file("dir4/f1", "...", 0o644), file("dir5/f1", "...", 0o644)]);
    lower.extend(["dir1", "dir2", "dir3", "dir5", "dir5/f1"].map(|path| Change::Own(path, 1)));
    let middle = vec![
        Change::Own("dir2", 0),
        Change::Remove("dir3"),
        Change::Own("dir4", 1),
        Change::Own("dir4/f1", 1),
    ];
    let upper = vec![
        dir("dir3", 0o700),
        Change::Own("dir3", 1),
        Change::Remove("dir5"),
        dir("dir5", 0o700),
        Change::Own("dir5", 1),
    ];
    build(plugin, &[lower, middle, upper]).await;
}

pub(super) async fn what_a_layer_deletes_is_gone_above(plugin: &Plugin) {
    let layers = [
        vec![file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)],
        vec![Change::Remove("foobar")],
        vec![],
    ];
    build(plugin, &layers).await;
}

pub(super) async fn a_file_moves_out_of_a_lower_layer(plugin: &Plugin) {
    let lower = vec![
        dir("dir1", 0o700),
        file("dir1/f1", "Hello", 0o644),
        dir("dir2", 0o700),
        file("dir2/f2", "...", 0o644),
    ];
    let upper = vec![
        dir("dir3", 0o700),
        file("dir3/f1", "Hello", 0o644),
        Change::Remove("dir1"),
        Change::Link("dir2/f2", "dir3/f2"),
        Change::Remove("dir2/f2"),
    ];
    build(plugin, &[lower, upper]).await;
}

/// Directories of lower layers cannot be renamed on overlay without redirect_dir; containerd's suite leaves
/// that out for its own overlay snapshotter as well.
pub(super) async fn files_of_a_lower_layer_are_renamed(plugin: &Plugin) {
    let lower = vec![
        dir("somefiles", 0o700),
        file("somefiles/f1", "was here first!", 0o644),
        file("somefiles/f2", "nothing interesting", 0o644),
    ];
    let upper = vec![
        file("somefiles/f1-overwrite", "new content 1", 0o644),
        Change::Rename("somefiles/f1-overwrite", "somefiles/f1"),
        Change::Rename("somefiles/f2", "somefiles/f3"),
    ];
    build(plugin, &[lower, upper]).await;
}

pub(super) async fn a_view_cannot_be_written(plugin: &Plugin) {
    plugin.prepare("active", "").await.unwrap();
    plugin.commit("bottom", "active").await.unwrap();
    plugin.prepare("active", "bottom").await.unwrap();
    plugin.commit("top", "active").await.unwrap();
    plugin.view("empty", "").await.unwrap();
    plugin.view("bound", "bottom").await.unwrap();
    plugin.view("merged", "top").await.unwrap();
    for key in ["empty", "bound", "merged"] {
        let mounted = Mounted::new(&plugin.mounts(key).await.unwrap(), &plugin.place());
        let error = std::fs::write(mounted.path().join("testfile"), "testcontent").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{key}");
    }
    for key in ["empty", "bound", "merged", "top", "bottom"] {
        plugin.remove(key).await.unwrap();
    }
}

pub(super) async fn the_root_of_a_container_has_mode_755(plugin: &Plugin) {
    let mounts = plugin.prepare("active", "").await.unwrap();
    {
        let mounted = Mounted::new(&mounts, &plugin.place());
        assert_eq!(std::fs::metadata(mounted.path()).unwrap().mode() & 0o7777, 0o755);
        std::os::unix::fs::chown(mounted.path(), Some(5), Some(7)).unwrap();
    }
    plugin.commit("layer", "active").await.unwrap();
    let mounts = plugin.prepare("above", "layer").await.unwrap();
    let mounted = Mounted::new(&mounts, &plugin.place());
    let root = std::fs::metadata(mounted.path()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o755, 5, 7), "owned as the layer below");
}

pub(super) async fn a_hundred_and_twenty_eight_layers_are_mounted(plugin: &Plugin) {
    /// The suite that this follows has no limit; a machine shared by many must still end it.
    const PATIENCE: Duration = Duration::from_secs(300);
    let layered = async {
        let plain = plugin.place();
        let mut parent = String::new();
        for layer in 0..128 {
            let changes = tower(layer);
            let active = plugin.name("active");
            let mounts = plugin.prepare(&active, &parent).await.unwrap();
            {
                let mounted = Mounted::new(&mounts, &plugin.place());
                assert_eq!(look(mounted.path()), look(&plain), "layer {layer}, before");
                apply(mounted.path(), &changes);
                apply(&plain, &changes);
                assert_eq!(look(mounted.path()), look(&plain), "layer {layer}, after");
            }
            parent = plugin.name("layer");
            plugin.commit(&parent, &active).await.unwrap();
        }
        expect_view(plugin, &parent, &plain).await;
    };
    tokio::time::timeout(PATIENCE, layered).await.unwrap();
}

fn tower(layer: usize) -> Vec<Change> {
    if layer == 0 {
        return vec![
            file("bottom", "way at the bottom\n", 0o777),
            file("overwriteme", "FIRST!\n", 0o777),
            dir("addhere", 0o755),
            dir("onlyme", 0o755),
            file("onlyme/bottom", "bye!\n", 0o777),
        ];
    }
    vec![
        file("overwriteme", format!("{layer} WAS HERE!\n"), 0o777),
        file(format!("addhere/file-{layer}"), "same\n", 0o755),
        Change::Remove("onlyme"),
        dir("onlyme", 0o755),
        file(format!("onlyme/file-{layer}"), "only me!\n", 0o777),
    ]
}
