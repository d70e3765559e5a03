//! Makes the mounts that a snapshotter asks for, as containerd makes them.

use std::path::{Path, PathBuf};

use flotilla::wire::containerd::types::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_remount, unmount};

/// What the kernel takes as mount options: one page.
const OPTIONS_LEN_MAX: usize = 4095;

/// A mounted snapshot; unmounted when it is dropped.
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    pub(crate) fn new(mounts: &[Mount], at: &Path) -> Self {
        let [one] = mounts else { panic!("one mount makes a snapshot, not {}", mounts.len()) };
        match one.r#type.as_str() {
            "bind" => bind(one, at),
            "overlay" => overlay(one, at),
            other => panic!("no snapshot of ours is mounted by {other}"),
        }
        Self { at: at.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

fn bind(wanted: &Mount, at: &Path) {
    mount_bind_recursive(&wanted.source, at).unwrap();
    match wanted.options.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rw", "rbind"] => {}
        ["ro", "rbind"] => mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, "").unwrap(),
        ref odd => panic!("odd options {odd:?}"),
    }
}

fn overlay(wanted: &Mount, at: &Path) {
    let options = wanted.options.join(",");
    if options.len() <= OPTIONS_LEN_MAX {
        mount("overlay", at, "overlay", MountFlags::empty(), &*c_string(&options)).unwrap();
        return;
    }
    // containerd's way with many layers: paths relative to the directory that they share, on a thread that
    // has a working directory of its own.
    let common = common_directory(&wanted.options);
    let short = options.replace(&format!("{common}/"), "");
    assert!(short.len() <= OPTIONS_LEN_MAX, "{} bytes of options even if shortened", short.len());
    let at = at.to_owned();
    let mounting = std::thread::spawn(move || {
        #[expect(deprecated, reason = "only the working directory is unshared, and that is safe")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::FS).unwrap();
        rustix::process::chdir(common.as_str()).unwrap();
        mount("overlay", &at, "overlay", MountFlags::empty(), &*c_string(&short)).unwrap();
    });
    mounting.join().unwrap();
}

fn c_string(text: &str) -> std::ffi::CString {
    std::ffi::CString::new(text).unwrap()
}

fn common_directory(options: &[String]) -> String {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let (common, _) = lower.split(':').next().unwrap().rsplit_once("/snapshots/").unwrap();
    format!("{common}/snapshots")
}
