//! Our unpacking beside containerd's own: the same tree, inode by inode, and the same verdict on odd layers.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what is wrong")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use flotilla::{
    oci::Compression,
    unpack::{self, Built, UnpackError},
};
use tar::Header;

use crate::{
    tree::{differences, facts},
    unpack_containerd::{Containerd, Layer},
};

/// Layers that we have unpacked, each in a directory of its own.
struct Ours {
    directory: tempfile::TempDir,
    built: Vec<Built>,
}

impl Ours {
    fn unpack(layers: &[Layer]) -> Result<Self, UnpackError> {
        let mut ours = Self { directory: tempfile::tempdir().unwrap(), built: Vec::new() };
        for (at, layer) in layers.iter().enumerate() {
            let staging = ours.layer(at);
            fs::create_dir(&staging).unwrap();
            fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).unwrap();
            let described =
                unpack::Layer { compression: Compression::Gzip, diff_id: &layer.diff_id, bottom: at == 0 };
            let built = unpack::unpack(&described, &layer.blob[..], &staging)?;
            let below: Vec<PathBuf> = (0..at).rev().map(|below| ours.layer(below)).collect();
            unpack::settle(&staging, &built, &below).unwrap();
            ours.built.push(built);
        }
        Ok(ours)
    }

    fn layer(&self, at: usize) -> PathBuf {
        self.directory.path().join(at.to_string())
    }

    /// What differs from containerd's directories, but for times that containerd takes from its clock.
    fn differences(&self, theirs: &[PathBuf]) -> Vec<String> {
        assert_eq!(self.built.len(), theirs.len());
        let differing = theirs.iter().zip(&self.built).enumerate().map(|(at, (theirs, built))| {
            let (ours, theirs) = (facts(&self.layer(at)), facts(theirs));
            let whiteouts = theirs.iter().filter(|facts| facts.kind == 'c' && facts.device == 0);
            let mut unstamped: BTreeSet<PathBuf> = whiteouts.map(|facts| facts.path.clone()).collect();
            unstamped.extend(built.implied.iter().cloned());
            differences(&ours, &theirs, &unstamped).into_iter().map(move |line| format!("layer {at}: {line}"))
        });
        differing.flatten().collect()
    }
}

/// Writes tars that exercise what a tar can say.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: u8, name: &[u8], content: &[u8], edit: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.linkflag = [kind];
        old.name[..name.len()].copy_from_slice(name);
        edit(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name.as_bytes(), content.as_bytes(), |_| {})
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name.as_bytes(), b"", |header| header.set_mode(mode))
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.entry(kind, name.as_bytes(), b"", |header| set_link(header, target.as_bytes()))
    }

    fn device(self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        self.entry(kind, name.as_bytes(), b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        std::io::Write::write_all(self.0.get_mut(), bytes).unwrap();
        self
    }

    fn layer(self) -> Layer {
        Layer::gzip(&self.0.into_inner().unwrap())
    }

    /// Without the blocks that mark the end, and without the last `cut` bytes.
    fn cut_layer(mut self, cut: usize) -> Layer {
        let tar = self.0.get_mut();
        Layer::gzip(&tar[..tar.len() - cut])
    }
}

fn set_link(header: &mut Header, target: &[u8]) {
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
}

/// The bottom layer of the torture.
fn everything() -> Tar {
    let long = format!("long/{}/{}", "d".repeat(150), "f".repeat(255));
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut tar = Tar::new()
        .directory("./", 0o700)
        .directory("./bin/", 0o755)
        .pax(&[("SCHILY.xattr.security.capability", capability), ("mtime", b"1500000000.123456789")])
        .entry(b'0', b"./bin/ping", b"ping", |header| header.set_mode(0o755))
        .entry(b'0', b"./bin/su", b"su", |header| header.set_mode(0o6755))
        .link(b'1', "./bin/su-too", "./bin/su")
        .entry(b'1', b"./bin/su-three", b"", |header| {
            set_link(header, b"bin/su");
            header.set_mode(0o4711);
            header.set_uid(12);
        })
        .link(b'2', "./lib", "usr/lib")
        .file("./lib/libc.so", "through a link that leads nowhere yet")
        .link(b'2', "./usr/lib/absolute", "/etc")
        .file("./usr/lib/absolute/x", "into /etc")
        .link(b'2', "./tangle", "usr/../usr/lib/./../lib/absolute")
        .file("./tangle/y", "into /etc again")
        .link(b'1', "link-to-link", "lib")
        .device(b'3', "dev/null", 1, 3)
        .device(b'4', "dev/big", 259, 1_000_000)
        .entry(b'6', b"dev/pipe", b"", |header| header.set_mode(0o600))
        .pax(&[
            ("uid", b"4000000"),
            ("gid", b"70000"),
            ("SCHILY.xattr.user.a", b"line\nfeed\0"),
            ("SCHILY.xattr.user.empty", b""),
        ])
        .directory("owned", 0o3775)
        .pax(&[("path", long.as_bytes()), ("SCHILY.xattr.user.big", &[b'x'; 3000])])
        .file("cut", "long name")
        .pax(&[("path", b"caf\xe9\nnew line")])
        .file("cut", "odd name")
        .pax(&[("linkpath", &[b'/'; 1000])])
        .link(b'2', "long-link", "cut")
        .pax(&[("mtime", b"-3.5")])
        .file("times/before", "")
        .pax(&[("mtime", b"9999999999")])
        .file("times/after", "")
        .pax(&[("mtime", b"0.000000001"), ("atime", b"2000000000.5"), ("SCHILY.xattr.trusted.x", b"dropped")])
        .directory("times/dir", 0o1777)
        .directory("become", 0o755)
        .file("become/deep/file", "1")
        .file("become", "a file now")
        .directory("become", 0o711)
        .file("become/again", "2")
        .file("twice", "first and longer")
        .file("twice", "second")
        .link(b'2', "dirlink", "bin")
        .directory("dirlink", 0o700)
        .file("dirlink/own", "not in bin")
        .directory("late-link", 0o755)
        .link(b'2', "late-link", "owned")
        .file(" x.wh.y", "no whiteout")
        .file("doomed/file", "")
        .file("doomed/.wh.file", "")
        .file("implied/opaque/gone", "with its directory that has no entry")
        .file("implied/kept", "")
        .file("implied/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        .pax(&[("SCHILY.xattr.user.impossible", b"on a link")])
        .link(b'2', "link-with-xattr", "x")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"1048576"),
        ])
        .entry(
            b'0',
            b"GNUSparseFile.0/sparse",
            &[&b"2\n4096\n4\n1048576\n0\n"[..], &[0; 493], b"data"].concat(),
            |_| {},
        );
    for at in 0..2000 {
        tar = tar.file(&format!("many/{at}"), &at.to_string());
    }
    tar
}

fn upper() -> Tar {
    Tar::new()
        .file("owned/implied/x", "an implied directory below one of another owner")
        .file("etc/.wh.x", "")
        .file("bin/.wh..wh..opq", "")
        .file("bin/sh", "sh")
        .file("times/dir/later", "")
        .directory("times/dir", 0o700)
        .file("lib", "a file where a link was")
        .file("long/new", "")
        .file("late-link/implied", "a directory here, a link below")
        .entry(b'0', b".wh.twice", b"", |header| header.set_uid(5))
        .file(".wh..wh..opq", "")
        .directory("./", 0o777)
}

fn top() -> Tar {
    Tar::new().file("bin/new", "").file("owned/implied/y", "").file("lib2/deep/er", "").file("tangle/z", "")
}

#[test]
fn our_trees_are_containerds() {
    let containerd = Containerd::start();
    let layers = [everything().layer(), upper().layer(), top().layer()];
    let theirs = containerd.unpack("everything", &layers).unwrap();
    let ours = Ours::unpack(&layers).unwrap();
    let differences = ours.differences(&theirs);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(facts(&ours.layer(0)).len() > 2000);
}

/// Layers of one oddity each: name, whether something lies below, the layer.
fn oddities() -> Vec<(&'static str, bool, Layer)> {
    let tar = Tar::new;
    let global = |name: &'static [u8]| {
        tar().directory("d", 0o755).file("d/f", "").entry(b'g', name, b"9 path=d\n", |_| {})
    };
    let plain_global = |name: &'static [u8]| tar().file("f", "").entry(b'g', name, b"13 comment=x\n", |_| {});
    vec![
        ("whiteout-after", true, tar().file("a", "").file(".wh.a", "").layer()),
        ("whiteout-before", true, tar().file(".wh.a", "").file("a", "").layer()),
        ("whiteout-twice", true, tar().file(".wh.a", "").file(".wh.a", "").layer()),
        ("whiteout-bottom-before", false, tar().file(".wh.a", "").file("a", "").layer()),
        ("whiteout-directory", false, tar().directory("a", 0o755).file(".wh.a", "").layer()),
        ("whiteout-nameless", true, tar().file(".wh.", "").layer()),
        ("whiteout-parent", true, tar().file("a/.wh...", "").layer()),
        ("opaque-in-implied", true, tar().file("a/b/.wh..wh..opq", "").layer()),
        ("hard-link-missing", true, tar().link(b'1', "a", "below").layer()),
        ("hard-link-self", true, tar().file("a", "").link(b'1', "a", "a").layer()),
        ("hard-link-directory", true, tar().directory("a", 0o755).link(b'1', "b", "a").layer()),
        ("hard-link-out", true, tar().link(b'1', "b", "../../../../../../etc/passwd").layer()),
        (
            "hard-link-through",
            true,
            tar().file("c/f", "1").link(b'2', "l", "c").link(b'1', "h", "l/../l/f").layer(),
        ),
        ("hard-link-absolute", true, tar().file("f", "1").link(b'1', "h", "/f").layer()),
        ("parent-is-file", true, tar().file("a", "").file("a/b", "").layer()),
        ("circle", true, tar().link(b'2', "a", "b").link(b'2', "b", "a").file("a/x", "").layer()),
        ("climbing", true, tar().file("../../x", "1").file("/y", "2").file("a/../../z", "3").layer()),
        ("link-out", true, tar().link(b'2', "a", "../../../..").file("a/etc/x", "1").layer()),
        ("type-7", true, tar().entry(b'7', b"a", b"1", |_| {}).layer()),
        ("type-V", true, tar().entry(b'V', b"a", b"", |_| {}).layer()),
        ("trailing-slash", true, tar().file("a/", "1").entry(0, b"b/", b"", |_| {}).layer()),
        ("global", true, global(b"pax_global_header").layer()),
        ("global-comment", true, plain_global(b"pax_global_header").layer()),
        ("global-implies", true, plain_global(b"tmp/GlobalHead.1").file("e", "").layer()),
        ("global-replaces", true, plain_global(b"f").layer()),
        (
            "pax-unknown",
            true,
            tar().pax(&[("comment", b"x"), ("LIBARCHIVE.xattr.user.a", b"x")]).file("a", "").layer(),
        ),
        ("pax-bad-mtime", true, tar().pax(&[("mtime", b"x")]).file("a", "").layer()),
        ("pax-bad-ctime", true, tar().pax(&[("ctime", b"x")]).file("a", "").layer()),
        ("pax-empty-path", true, tar().pax(&[("path", b""), ("mtime", b"")]).file("a", "").layer()),
        ("xattr-unknown-space", true, tar().pax(&[("SCHILY.xattr.nonsense", b"x")]).file("a", "").layer()),
        ("xattr-nameless", true, tar().pax(&[("SCHILY.xattr.", b"x")]).file("a", "").layer()),
        (
            "xattr-bad-capability",
            true,
            tar().pax(&[("SCHILY.xattr.security.capability", b"x")]).file("a", "").layer(),
        ),
        ("xattr-too-large", true, tar().pax(&[("SCHILY.xattr.user.a", &[0; 70_000])]).file("a", "").layer()),
        ("uid-negative", true, tar().pax(&[("uid", b"-1")]).file("a", "").layer()),
        ("uid-too-large", true, tar().pax(&[("uid", b"4294967297")]).file("a", "").layer()),
        ("character-device-0-0", true, tar().device(b'3', "a", 0, 0).layer()),
        ("name-too-long", true, tar().pax(&[("path", &[b'n'; 256])]).file("a", "").layer()),
        ("empty-link", true, tar().link(b'2', "a", "").layer()),
        ("directory-gone", false, tar().directory("a", 0o755).file(".wh.a", "").file("b", "").layer()),
        (
            "directory-now-file",
            true,
            tar().directory("a", 0o755).pax(&[("mtime", b"5")]).file("a", "").layer(),
        ),
        ("empty", true, tar().layer()),
        ("nothing", true, Layer::gzip(b"")),
        ("no-end", true, tar().file("a", "1").cut_layer(0)),
        ("no-padding", true, tar().file("a", "1").cut_layer(511)),
        ("no-content", true, tar().file("a", "1").cut_layer(512)),
        ("half-a-header", true, tar().file("a", "1").cut_layer(600)),
        ("lone-zeros", true, tar().raw(&[0; 512]).file("a", "").layer()),
        ("garbage", true, tar().raw(&[b'x'; 1024]).layer()),
        ("text-after-the-end", true, tar().file("a", "").raw(&[0; 1024]).raw(b"text").cut_layer(0)),
        (
            "sparse-lies",
            true,
            tar()
                .pax(&[
                    ("GNU.sparse.size", b"100"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.map", b"98,4"),
                ])
                .file("a", "1234")
                .layer(),
        ),
        (
            "sparse-0-1",
            true,
            tar()
                .pax(&[
                    ("GNU.sparse.size", b"100"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.map", b"9,4"),
                ])
                .file("a", "1234")
                .layer(),
        ),
    ]
}

#[test]
fn our_verdict_is_containerds() {
    let containerd = Containerd::start();
    let mut differing = Vec::new();
    for (name, above, layer) in oddities() {
        let below = Tar::new().file("below", "").layer();
        let layers = if above { vec![below, layer] } else { vec![layer] };
        let theirs = containerd.unpack(name, &layers);
        match (Ours::unpack(&layers), theirs) {
            (Ok(ours), Ok(theirs)) => {
                differing.extend(ours.differences(&theirs).iter().map(|line| format!("{name}: {line}")));
            }
            (Err(UnpackError::Refused { .. }), Err(_)) => {}
            (ours, theirs) => {
                let ours = ours.map(|_| "taken");
                differing.push(format!("{name}: ours {ours:?}, theirs {theirs:?}"));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// The directories are those of this test alone.
#[test]
fn the_comparison_sees_what_differs() {
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |root: &Path, content: &str| fs::write(root.join("a"), content).unwrap();
    write(left.path(), "1");
    write(right.path(), "2");
    let unstamped = BTreeSet::from([PathBuf::from("a")]);
    assert_eq!(differences(&facts(left.path()), &facts(right.path()), &unstamped).len(), 1);
    write(right.path(), "1");
    assert!(differences(&facts(left.path()), &facts(right.path()), &unstamped).is_empty());
}
