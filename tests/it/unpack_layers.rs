//! Layers that try what a tar can say.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what is wrong")]

#[path = "../../src/unpack/tests/tar.rs"]
#[allow(dead_code, reason = "each of its two users needs other parts")]
mod tar;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use flotilla::{oci::Compression, unpack};

use crate::unpack_containerd::Layer;

use tar::{Tar, set_link};

/// A capability in the kernel's form (`cap_net_raw+ep`).
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Links, devices and odd ends, on top of what the module's own tests write.
impl Tar {
    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.entry(kind, name.as_bytes(), b"", |header| set_link(header, target))
    }

    fn device(self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        self.entry(kind, name.as_bytes(), b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    fn layer(self) -> Layer {
        Layer::gzip(&self.end())
    }

    fn layer_in_members(self) -> Layer {
        Layer::gzip_in_members(&self.end())
    }

    /// Without the blocks that mark the end, and without the last `cut_len` bytes.
    fn cut_layer(self, cut_len: usize) -> Layer {
        let tar = self.cut();
        Layer::gzip(&tar[..tar.len() - cut_len])
    }
}

/// Three layers of up to a dozen entries each. Of an even seed come layers without entries that we would refuse: few of
/// the others are taken as a whole.
pub(crate) fn random_layers(seed: u64) -> Vec<Layer> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut random_layer = |bottom: bool| {
        let mut tar = Tar::new();
        for _ in 0..random.random_range(1..12) {
            let longer = random_entry(tar.clone(), &mut random);
            if seed % 2 == 1 || is_taken(longer.clone().layer(), bottom) {
                tar = longer;
            }
        }
        tar.layer()
    };
    vec![random_layer(true), random_layer(false), random_layer(false)]
}

fn is_taken(layer: Layer, bottom: bool) -> bool {
    let staging = tempfile::tempdir().unwrap();
    let described = unpack::Layer { compression: Compression::Gzip, diff_id: &layer.diff_id, bottom };
    unpack::unpack(&described, &layer.blob[..], staging.path()).is_ok()
}

fn random_entry(tar: Tar, random: &mut StdRng) -> Tar {
    const NAMES: [&str; 12] =
        ["a", "b", "c", "a/b", "a/b/c", "b/c", "c/a", "c/a/b", "./a/", "../b/a", "a/../c", "a/b/c/d"];
    const TARGETS: [&str; 8] = ["a", "b", "/c", "../b", "a/b", "./c/a", "..", "/b/../a"];
    let name = *NAMES.choose(random).unwrap();
    let target = *TARGETS.choose(random).unwrap();
    let mode = *[0o755, 0o700, 0o2775, 0o1777, 0o6711].choose(random).unwrap();
    let owner = random.random_range(0..3);
    let own = |header: &mut ::tar::Header| {
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_600_000_000 + u64::from(mode));
    };
    let (parent, last) = name.trim_end_matches('/').rsplit_once('/').unwrap_or((".", name));
    match random.random_range(0..14) {
        0..4 => tar.entry(b'0', name.as_bytes(), name.as_bytes(), own),
        4..7 => tar.entry(b'5', name.as_bytes(), b"", own),
        7 => tar.pax(&[("SCHILY.xattr.user.x", target.as_bytes())]).entry(b'5', name.as_bytes(), b"", own),
        8 | 9 => tar.link(b'2', name, target),
        10 => tar.link(b'1', name, target),
        11 | 12 => tar.entry(b'0', format!("{parent}/.wh.{last}").as_bytes(), b"", own),
        _ => tar.entry(b'0', format!("{parent}/.wh..wh..opq").as_bytes(), b"", own),
    }
}

/// The bottom layer of the torture.
pub(crate) fn everything() -> Layer {
    attributes(times_and_kinds(odd_places(programs_and_links(Tar::new())))).layer()
}

fn programs_and_links(tar: Tar) -> Tar {
    tar.directory("./", 0o700)
        .directory("./bin/", 0o755)
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY), ("mtime", b"1500000000.123456789")])
        .entry(b'0', b"./bin/ping", b"ping", |header| header.set_mode(0o755))
        .entry(b'0', b"./bin/su", b"su", |header| header.set_mode(0o6755))
        .link(b'1', "./bin/su-too", "./bin/su")
        .entry(b'1', b"./bin/su-three", b"", |header| {
            set_link(header, "bin/su");
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
        .link(b'2', "dirlink", "bin")
        .directory("dirlink", 0o700)
        .file("dirlink/own", "not in bin")
}

fn odd_places(tar: Tar) -> Tar {
    let tar = tar
        .directory("become", 0o755)
        .file("become/deep/file", "1")
        .file("become", "a file now")
        .directory("become", 0o711)
        .file("become/again", "2")
        .file("twice", "first and longer")
        .file("twice", "second")
        .file(" x.wh.y", "no whiteout")
        .file("doomed/file", "")
        .file("doomed/.wh.file", "")
        .file("implied/opaque/gone", "with its directory that has no entry")
        .file("implied/kept", "")
        .file("implied/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "");
    (0..2000).fold(tar, |tar, at| tar.file(&format!("many/{at}"), &at.to_string()))
}

/// Without the oldest form of sparse files (type S), which containerd refuses and we take.
fn times_and_kinds(tar: Tar) -> Tar {
    let sparse = [&b"2\n4096\n4\n1048576\n0\n"[..], &[0; 493], b"data"].concat();
    tar.device(b'3', "dev/null", 1, 3)
        .device(b'4', "dev/big", 259, 1_000_000)
        .entry(b'6', b"dev/pipe", b"", |header| header.set_mode(0o600))
        .pax(&[("mtime", b"-3.5")])
        .file("times/before", "")
        .pax(&[("mtime", b"9999999999")])
        .file("times/after", "")
        .pax(&[("mtime", b"0.000000001"), ("atime", b"2000000000.5"), ("SCHILY.xattr.trusted.x", b"dropped")])
        .directory("times/dir", 0o1777)
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"1048576"),
        ])
        .entry(b'0', b"GNUSparseFile.0/sparse", &sparse, |_| {})
        .pax(&[
            ("GNU.sparse.size", b"1048576"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.map", b"524288,4"),
            ("GNU.sparse.name", b"sparse-0.1"),
        ])
        .entry(b'0', b"GNUSparseFile.0/sparse-0.1", b"data", |_| {})
}

fn attributes(tar: Tar) -> Tar {
    let long = format!("long/{}/{}", "d".repeat(150), "f".repeat(255));
    let gnu = format!("gnu/{}/{}", "d".repeat(150), "f".repeat(255));
    tar.pax(&[
        ("uid", b"4000000"),
        ("gid", b"70000"),
        ("SCHILY.xattr.user.a", b"line\nfeed\0"),
        ("SCHILY.xattr.user.empty", b""),
    ])
    .directory("owned", 0o3775)
    .directory("late-link", 0o755)
    .link(b'2', "late-link", "owned")
    .pax(&[("path", long.as_bytes()), ("SCHILY.xattr.user.big", &[b'x'; 3000])])
    .file("cut", "long name")
    .pax(&[("path", b"caf\xe9\nnew line")])
    .file("cut", "odd name")
    .pax(&[("linkpath", &[b'/'; 1000])])
    .link(b'2', "long-link", "cut")
    .entry(b'L', b"././@LongLink", &[gnu.as_bytes(), b"\0"].concat(), |_| {})
    .file("cut", "a long name in GNU's form")
    .entry(b'K', b"././@LongLink", &[&[b'k'; 300][..], b"\0"].concat(), |_| {})
    .link(b'2', "long-link-of-gnu", "cut")
    .entry(b'L', b"././@LongLink", b"gnu/caf\xe9\0", |_| {})
    .file("cut", "an odd name in GNU's form")
    .pax(&[("SCHILY.xattr.user.impossible", b"on a link")])
    .link(b'2', "link-with-xattr", "x")
}

pub(crate) fn upper() -> Layer {
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
        .layer_in_members()
}

pub(crate) fn top() -> Layer {
    Tar::new()
        .file("bin/new", "")
        .file("owned/implied/y", "")
        .file("lib2/deep/er", "")
        .file("tangle/z", "")
        .layer()
}

/// Layers of which the top one has one oddity.
pub(crate) struct Oddity {
    pub(crate) name: &'static str,
    pub(crate) layers: Vec<Layer>,
}

fn ordinary() -> Layer {
    Tar::new().file("below", "").layer()
}

fn above(name: &'static str, tar: Tar) -> Oddity {
    Oddity { name, layers: vec![ordinary(), tar.layer()] }
}

fn bottom(name: &'static str, tar: Tar) -> Oddity {
    Oddity { name, layers: vec![tar.layer()] }
}

fn cut(name: &'static str, tar: Tar, cut_len: usize) -> Oddity {
    Oddity { name, layers: vec![ordinary(), tar.cut_layer(cut_len)] }
}

pub(crate) fn oddities() -> Vec<Oddity> {
    [odd_whiteouts(), odd_hard_links(), odd_paths(), odd_headers(), odd_attributes(), odd_ends()]
        .into_iter()
        .flatten()
        .collect()
}

fn odd_whiteouts() -> Vec<Oddity> {
    let tar = Tar::new;
    vec![
        above("whiteout-after", tar().file("a", "").file(".wh.a", "")),
        above("whiteout-before", tar().file(".wh.a", "").file("a", "")),
        above("whiteout-twice", tar().file(".wh.a", "").file(".wh.a", "")),
        bottom("whiteout-bottom-before", tar().file(".wh.a", "").file("a", "")),
        bottom("whiteout-directory", tar().directory("a", 0o755).file(".wh.a", "")),
        above("whiteout-nameless", tar().file(".wh.", "")),
        above("whiteout-parent", tar().file("a/.wh...", "")),
        above("opaque-in-implied", tar().file("a/b/.wh..wh..opq", "")),
        bottom("directory-gone", tar().directory("a", 0o755).file(".wh.a", "").file("b", "")),
        above("character-device-0-0", tar().device(b'3', "a", 0, 0)),
    ]
}

fn odd_hard_links() -> Vec<Oddity> {
    let tar = Tar::new;
    let through = tar().file("c/f", "1").link(b'2', "l", "c").link(b'1', "h", "l/../l/f");
    vec![
        above("hard-link-missing", tar().link(b'1', "a", "below")),
        above("hard-link-self", tar().file("a", "").link(b'1', "a", "a")),
        above("hard-link-directory", tar().directory("a", 0o755).link(b'1', "b", "a")),
        above("hard-link-out", tar().link(b'1', "b", "../../../../../../etc/passwd")),
        above("hard-link-through", through),
        above("hard-link-absolute", tar().file("f", "1").link(b'1', "h", "/f")),
    ]
}

fn odd_paths() -> Vec<Oddity> {
    let tar = Tar::new;
    vec![
        above("parent-is-file", tar().file("a", "").file("a/b", "")),
        above("circle", tar().link(b'2', "a", "b").link(b'2', "b", "a").file("a/x", "")),
        above("climbing", tar().file("../../x", "1").file("/y", "2").file("a/../../z", "3")),
        above("link-out", tar().link(b'2', "a", "../../../..").file("a/etc/x", "1")),
        above("trailing-slash", tar().file("a/", "1").entry(0, b"b/", b"", |_| {})),
        above("name-too-long", tar().pax(&[("path", &[b'n'; 256])]).file("a", "")),
        above("empty-link", tar().link(b'2', "a", "")),
        above("directory-now-file", tar().directory("a", 0o755).pax(&[("mtime", b"5")]).file("a", "")),
    ]
}

fn odd_headers() -> Vec<Oddity> {
    let tar = Tar::new;
    let global = |name: &[u8], record: &[u8]| tar().file("f", "").entry(b'g', name, record, |_| {});
    let foreign: &[(&str, &[u8])] = &[("comment", b"x"), ("LIBARCHIVE.xattr.user.a", b"x")];
    let sparse = |map: &[u8]| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.size", b"100"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", map)];
        tar().pax(records).file("a", "1234")
    };
    vec![
        above("type-7", tar().entry(b'7', b"a", b"1", |_| {})),
        above("type-V", tar().entry(b'V', b"a", b"", |_| {})),
        above("global", global(b"pax_global_header", b"13 comment=x\n")),
        above("global-implies", global(b"tmp/GlobalHead.1", b"13 comment=x\n").file("e", "")),
        above("global-replaces", global(b"f", b"13 comment=x\n")),
        above("global-path", global(b"pax_global_header", b"9 path=f\n")),
        above("pax-unknown", tar().pax(foreign).file("a", "")),
        above("pax-bad-mtime", tar().pax(&[("mtime", b"x")]).file("a", "")),
        above("pax-bad-ctime", tar().pax(&[("ctime", b"x")]).file("a", "")),
        above("pax-empty-path", tar().pax(&[("path", b""), ("mtime", b"")]).file("a", "")),
        above("sparse", sparse(b"9,4")),
        above("sparse-lies", sparse(b"98,4")),
    ]
}

fn odd_attributes() -> Vec<Oddity> {
    let with = |record: (&str, &[u8])| Tar::new().pax(&[record]).file("a", "");
    vec![
        above("xattr-unknown-space", with(("SCHILY.xattr.nonsense", b"x"))),
        above("xattr-nameless", with(("SCHILY.xattr.", b"x"))),
        above("xattr-bad-capability", with(("SCHILY.xattr.security.capability", b"x"))),
        above("xattr-too-large", with(("SCHILY.xattr.user.a", &[0; 70_000]))),
        above("uid-negative", with(("uid", b"-1"))),
        above("uid-too-large", with(("uid", b"4294967297"))),
    ]
}

fn odd_ends() -> Vec<Oddity> {
    let file = || Tar::new().file("a", "1");
    vec![
        above("empty", Tar::new()),
        cut("nothing", Tar::new(), 0),
        cut("no-end", file(), 0),
        cut("no-padding", file(), 511),
        cut("no-content", file(), 512),
        cut("half-a-header", file(), 600),
        above("lone-zeros", Tar::new().raw(&[0; 512]).file("a", "")),
        above("garbage", Tar::new().raw(&[b'x'; 1024])),
        cut("text-after-the-end", file().raw(&[0; 1024]).raw(b"text"), 0),
    ]
}
