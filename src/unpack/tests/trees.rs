//! What layers become.

use std::{fs, io, os::unix::fs::MetadataExt};

use super::tar::{Tar, set_link};
use super::*;

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode()
}

fn xattr(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let len = rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

#[test]
fn an_ordinary_layer() {
    let tar = Tar::new().directory("./", 0o700).directory("./etc/", 0o750).file("./etc/passwd", "root");
    let tar = tar.symlink("./etc/alias", "passwd").hard_link("./etc/twin", "etc/passwd");
    let (staging, built) = unpacked(tar);
    assert_eq!(fs::read(staging.join("etc/alias")).unwrap(), b"root");
    assert_eq!(fs::metadata(staging.join("etc/twin")).unwrap().nlink(), 2);
    assert_eq!(mode(staging.join("etc")), 0o040_750);
    assert_eq!(mode(staging.join("")), 0o040_755, "the root is the snapshot's");
    assert_eq!(fs::metadata(staging.join("etc")).unwrap().mtime(), 1_600_000_000);
    assert_eq!((built.entries, built.implied.len()), (5, 0));
}

#[test]
fn every_compression_gives_the_same_tree_and_diff_id() {
    let tar = Tar::new().file("a", "1").end();
    let split = tar.len() / 2;
    let members = [gzip(&tar[..split]), gzip(&tar[split..])].concat();
    let frames = |halves: [&[u8]; 2]| {
        let skippable = b"\x51\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        [skippable, zstd::encode_all(halves[0], 3).unwrap(), zstd::encode_all(halves[1], 3).unwrap()].concat()
    };
    for (stated, bytes) in [
        (Compression::None, tar.clone()),
        (Compression::Gzip, gzip(&tar)),
        (Compression::Gzip, members),
        (Compression::Zstd, frames([&tar[..split], &tar[split..]])),
        (Compression::Gzip, zstd::encode_all(&tar[..], 3).unwrap()),
        (Compression::Gzip, tar.clone()),
    ] {
        let staging = Staging::new();
        let diff_id = sha256(&tar);
        let layer = Layer { compression: stated, diff_id: &diff_id, bottom: true };
        let built = unpack(&layer, OneByte(&bytes), &staging.path()).unwrap();
        assert_eq!((built.bytes, fs::read(staging.join("a")).unwrap()), (tar.len() as u64, b"1".to_vec()));
    }
}

/// Delivers a byte at a time.
struct OneByte<'a>(&'a [u8]);

impl io::Read for OneByte<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.0.len().min(into.len()).min(1);
        into[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        Ok(len)
    }
}

#[test]
fn whiteouts_are_overlays_marks_above_and_deletions_at_the_bottom() {
    let tar = || {
        Tar::new()
            .file("d/.wh.gone", "")
            .file("d/.wh..wh..opq", "")
            .file("d/.wh..wh.plnk", "")
            .file("d/kept", "")
    };
    let (staging, _) = unpacked(tar());
    let gone = fs::symlink_metadata(staging.join("d/gone")).unwrap();
    assert_eq!((gone.mode(), gone.rdev()), (0o020_000, 0));
    assert_eq!(xattr(staging.join("d"), "trusted.overlay.opaque"), Some(b"y".to_vec()));
    assert_eq!(fs::read_dir(staging.join("d")).unwrap().count(), 2);

    let staging = unpacked_bottom(Tar::new().file("d/gone", "").file("d/kept", "").file("d/.wh.gone", ""));
    assert!(!staging.join("d/gone").exists() && staging.join("d/kept").exists());
    assert_eq!(xattr(staging.join("d"), "trusted.overlay.opaque"), None);
}

#[test]
fn links_of_the_layer_lead_within_the_layer() {
    let tar = Tar::new().directory("c", 0o755).symlink("a", "/c").symlink("up", "../../c/../c");
    let (staging, built) =
        unpacked(tar.file("a/b", "1").file("up/d/e", "2").symlink("new", "made").file("new/f", "3"));
    assert_eq!(fs::read(staging.join("c/b")).unwrap(), b"1");
    assert_eq!(fs::read(staging.join("c/d/e")).unwrap(), b"2");
    assert_eq!(fs::read(staging.join("made/f")).unwrap(), b"3");
    assert_eq!(built.implied, [Path::new("c/d"), Path::new("made")]);
}

#[test]
fn the_last_entry_counts_and_directories_merge() {
    let tar = Tar::new()
        .file("x", "file")
        .directory("x", 0o700)
        .file("x/in", "1")
        .directory("x", 0o711)
        .file("y/deep/er", "1")
        .file("y", "file now")
        .symlink("z", "x")
        .directory("z", 0o755)
        .file("z/own", "1");
    let (staging, built) = unpacked(tar);
    assert_eq!(
        (mode(staging.join("x")), fs::read(staging.join("x/in")).unwrap()),
        (0o040_711, b"1".to_vec())
    );
    assert_eq!(fs::read(staging.join("y")).unwrap(), b"file now");
    assert!(staging.join("z/own").exists() && !staging.join("x/own").exists());
    assert!(built.implied.is_empty(), "{:?}", built.implied);
}

#[test]
fn attributes_arrive_in_the_order_that_keeps_them() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::new()
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("uid", b"70000"),
            ("gid", b"5"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .entry(b'0', b"tool", b"x", |header| header.set_mode(0o6755))
        .pax(&[("mtime", b"-1.5"), ("SCHILY.xattr.user.on-a-link", b"is not possible")])
        .symlink("link", "tool");
    let (staging, _) = unpacked(tar);
    let tool = fs::metadata(staging.join("tool")).unwrap();
    assert_eq!((tool.mode(), tool.uid(), tool.gid()), (0o106_755, 70_000, 5));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(xattr(staging.join("tool"), "security.capability"), Some(capability.to_vec()));
    assert_eq!(xattr(staging.join("tool"), "user.empty"), Some(Vec::new()));
    assert_eq!(xattr(staging.join("tool"), "trusted.overlay.redirect"), None);
    assert_eq!(fs::symlink_metadata(staging.join("link")).unwrap().mtime(), 0);
}

#[test]
fn a_hard_link_may_lead_to_a_link_and_its_mode_is_the_files() {
    let tar = Tar::new().file("f", "1").symlink("s", "f").hard_link("t", "s");
    let tar = tar.entry(b'1', b"g", b"", |header| {
        set_link(header, "./f");
        header.set_mode(0o600);
    });
    let (staging, _) = unpacked(tar);
    assert_eq!(fs::read_link(staging.join("t")).unwrap(), Path::new("f"));
    assert_eq!(mode(staging.join("f")), 0o100_600);
}

#[test]
fn devices_and_pipes() {
    let tar = Tar::new()
        .entry(b'3', b"null", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .entry(b'6', b"pipe", b"", |_| {});
    let (staging, _) = unpacked(tar);
    assert_eq!(fs::symlink_metadata(staging.join("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(mode(staging.join("pipe")), 0o010_644);
}

#[test]
fn sparse_files_get_their_holes() {
    let len = 1 << 20;
    let one = vec![b'1'; 4096];
    let map = b"1\n524288\n4096\n".to_vec();
    let mut in_front = map.clone();
    in_front.resize(512, 0);
    let tar = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"new"),
            ("GNU.sparse.realsize", b"1048576"),
        ])
        .entry(b'0', b"GNUSparseFile.0/new", &[in_front, one.clone()].concat(), |_| {})
        .pax(&[
            ("GNU.sparse.size", b"1048576"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.offset", b"524288"),
            ("GNU.sparse.numbytes", b"4096"),
        ])
        .entry(b'0', b"older", &one, |_| {})
        .entry(b'S', b"oldest", &one, |header| {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.sparse[0].offset.copy_from_slice(b"00002000000\0");
            gnu.sparse[0].numbytes.copy_from_slice(b"00000010000\0");
            gnu.realsize.copy_from_slice(b"00004000000\0");
        });
    let (staging, _) = unpacked(tar);
    let mut expected = vec![0; len];
    expected[524_288..524_288 + 4096].fill(b'1');
    for name in ["new", "older", "oldest"] {
        assert!(fs::read(staging.join(name)).unwrap() == expected, "{name}");
        assert!(fs::metadata(staging.join(name)).unwrap().blocks() * 512 < 65_536, "{name} has no hole");
    }
}

#[test]
fn names_of_every_form() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let bytes = b"caf\xe9\n".to_vec();
    let tar = Tar::new()
        .entry(b'L', b"././@LongLink", &[long.as_bytes(), b"\0"].concat(), |_| {})
        .file("cut", "1")
        .pax(&[("path", &bytes), ("linkpath", &[b'/'; 1000])])
        .entry(b'2', b"cut", b"", |_| {})
        .entry(0, b"v7/", b"", |header| header.as_old_mut().pad.fill(0));
    let (staging, _) = unpacked(tar);
    assert!(staging.join(&long).exists());
    let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&bytes[..]);
    assert_eq!(fs::read_link(staging.path().join(name)).unwrap().as_os_str().len(), 1000);
    assert!(staging.join("v7").is_dir());
}

#[test]
fn the_end_is_where_go_sees_it() {
    let file = || Tar::new().file("a", "1");
    let unpadded = file().cut()[..513].to_vec();
    let zero_block = file().raw(&[0; 512]).cut();
    let trailing = [file().end(), b"what comes after the end is hashed and ignored".to_vec()].concat();
    for tar in [file().end(), file().cut(), unpadded, zero_block, trailing] {
        let staging = Staging::new();
        unpack_bytes(&tar, &staging.path(), true).unwrap();
        assert!(staging.join("a").exists());
    }
    assert!(unpack_bytes(&[], &Staging::new().path(), true).is_ok());
}

#[test]
fn implied_directories_take_after_the_nearest_layer_below() {
    let below = [Staging::new(), Staging::new()];
    let near = Tar::new().directory("a", 0o710).file("hidden", "a file");
    unpack_bytes(&near.end(), &below[0].path(), false).unwrap();
    let far = Tar::new()
        .directory("a", 0o777)
        .pax(&[("SCHILY.xattr.user.x", b"1"), ("uid", b"7"), ("mtime", b"1000.5")])
        .directory("a/b", 0o1770)
        .directory("hidden/c", 0o700);
    unpack_bytes(&far.end(), &below[1].path(), true).unwrap();
    let (staging, built) =
        unpacked(Tar::new().file("a/b/f", "").file("hidden/c/f", "").directory("a", 0o701));
    let lower: Vec<_> = below.iter().map(Staging::path).collect();
    crate::unpack::settle(&staging.path(), &built, &lower).unwrap();
    let b = fs::metadata(staging.join("a/b")).unwrap();
    assert_eq!((b.mode(), b.uid(), b.mtime(), b.mtime_nsec()), (0o041_770, 7, 1000, 500_000_000));
    assert_eq!(xattr(staging.join("a/b"), "user.x"), Some(b"1".to_vec()));
    assert_eq!(mode(staging.join("a")), 0o040_701, "stated, if late");
    assert_eq!(mode(staging.join("hidden/c")), 0o040_755, "what a file hides counts no more");
    assert_eq!(built.stated_late, [Path::new("a")]);
}

#[test]
fn a_full_disk_is_told_from_everything_else() {
    let mount = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", mount.path(), "tmpfs", flags, c"size=64k").unwrap();
    let tar = Tar::new().file("a", &"1".repeat(200_000)).end();
    let error = unpack_bytes(&tar, mount.path(), true).unwrap_err();
    rustix::mount::unmount(mount.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(error.is_no_space(), "{error:?}");
    assert_eq!(error.reason(), "no_space");
}
