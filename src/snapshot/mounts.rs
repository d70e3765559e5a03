//! The mounts that a record means, option by option as containerd's own overlay snapshotter returns them.

use std::path::Path;

use super::{
    directories::Directories,
    info::{Kind, Mount},
};

/// Options that depend on the machine, found once at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    options: Vec<String>,
}

impl Machine {
    /// What this kernel needs for overlay mounts over directories of `root`.
    pub(super) fn probe(root: &Path) -> Self {
        let mut options = Vec::new();
        if needs_userxattr(root) {
            options.push("userxattr".to_owned());
        }
        // With its index on, overlay binds an upper directory to the lower ones of its first mount and refuses
        // others with ESTALE. containerd turns it off on every kernel that has it.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off".to_owned());
        }
        Self { options }
    }

    #[cfg(test)]
    pub(super) fn with(options: &[&str]) -> Self {
        Self { options: options.iter().map(|&option| option.to_owned()).collect() }
    }
}

/// Mounts of the view or active snapshot `id` over `parents`, the nearest first.
///
/// Overlay needs a lower directory, so the bottom is bound. A view of one layer is that layer, bound.
pub(super) fn mounts(directories: &Directories, machine: &Machine, kind: Kind, chain: &[i64]) -> Vec<Mount> {
    let (&id, parents) = chain.split_first().expect("a chain begins with the snapshot itself");
    let writable = kind == Kind::Active;
    match parents {
        [] => vec![bind(directories.fs(id), if writable { "rw" } else { "ro" })],
        [parent] if !writable => vec![bind(directories.fs(*parent), "ro")],
        _ => {
            let mut options = Vec::new();
            if writable {
                options.push(format!("workdir={}", directories.work(id)));
                options.push(format!("upperdir={}", directories.fs(id)));
            }
            let lower: Vec<String> = parents.iter().map(|&parent| directories.fs(parent)).collect();
            options.push(format!("lowerdir={}", lower.join(":")));
            options.extend(machine.options.iter().cloned());
            vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
        }
    }
}

fn bind(source: String, access: &str) -> Mount {
    Mount { kind: "bind", source, options: vec![access.to_owned(), "rbind".to_owned()] }
}

/// In a user namespace overlay keeps its marks in `user.overlay.*`. Kernels know the option since 5.11;
/// tmpfs had no user attributes for most of that time, and containerd leaves it out there.
fn needs_userxattr(root: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let on_tmpfs = rustix::fs::statfs(root).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC);
    let release = rustix::system::uname();
    in_user_namespace() && !on_tmpfs && kernel_at_least(&release.release().to_string_lossy(), (5, 11))
}

/// The initial namespace maps all 2^32 - 1 ids onto themselves (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_whitespace().collect();
    !words.is_empty() && words != ["0", "0", "4294967295"]
}

fn kernel_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, chain: &[i64]) -> Vec<Mount> {
        let directories = Directories::at(Path::new("/r")).unwrap();
        mounts(&directories, &Machine::with(&["index=off"]), kind, chain)
    }

    fn bound(source: &str, access: &str) -> Vec<Mount> {
        vec![bind(source.to_owned(), access)]
    }

    fn overlay(options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
    }

    #[test]
    fn the_bottom_is_bound() {
        assert_eq!(of(Kind::Active, &[7]), bound("/r/snapshots/7/fs", "rw"));
        assert_eq!(of(Kind::View, &[7]), bound("/r/snapshots/7/fs", "ro"));
    }

    #[test]
    fn a_view_of_one_layer_is_the_layer() {
        assert_eq!(of(Kind::View, &[7, 3]), bound("/r/snapshots/3/fs", "ro"));
    }

    #[test]
    fn lower_directories_begin_at_the_nearest_parent() {
        assert_eq!(
            of(Kind::View, &[7, 5, 3]),
            overlay(&["lowerdir=/r/snapshots/5/fs:/r/snapshots/3/fs", "index=off"])
        );
        assert_eq!(
            of(Kind::Active, &[7, 3]),
            overlay(&[
                "workdir=/r/snapshots/7/work",
                "upperdir=/r/snapshots/7/fs",
                "lowerdir=/r/snapshots/3/fs",
                "index=off",
            ])
        );
    }

    #[test]
    fn kernel_releases_are_numbers_not_text() {
        assert!(kernel_at_least("6.1.0-13-amd64", (5, 11)));
        assert!(kernel_at_least("5.11", (5, 11)));
        assert!(!kernel_at_least("5.9.2", (5, 11)));
        assert!(!kernel_at_least("4.18.0-el8", (5, 11)));
        assert!(!kernel_at_least("odd", (5, 11)));
    }
}
