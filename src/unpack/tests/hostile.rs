//! What odd and hostile layers meet: a reason, a place, and nothing outside the staging directory.

use std::io;

use super::tar::{Tar, set_link};
use super::*;
use crate::unpack::Refusal;

/// Unpacks what must be refused, and returns where and why.
fn refused(tar: &[u8]) -> (u64, Refusal) {
    let staging = Staging::new();
    let error = unpack_bytes(tar, &staging.path(), false).expect_err("a hostile layer");
    staging.assert_confined();
    let UnpackError::Refused { offset, reason } = error else { panic!("not refused: {error:?}") };
    (offset, reason)
}

#[test]
fn no_name_leads_out() {
    let absolute = Tar::new().file("../../secret", "1").file("/secret", "2").file("a/../../../secret", "3");
    let through_links = Tar::new()
        .symlink("out", "../..")
        .file("out/secret", "1")
        .symlink("abs", "/")
        .file("abs/secret", "2")
        .symlink("kernel", "/proc/self/root")
        .file("kernel/secret", "3")
        .symlink("secret", "../secret")
        .file("secret", "4");
    for tar in [absolute, through_links] {
        let (staging, _) = unpacked(tar);
        staging.assert_confined();
        assert!(staging.join("secret").is_file());
    }
}

#[test]
fn no_hard_link_leads_out() {
    for target in ["../secret", "/../secret", "up/secret", "missing", "", ".", "up", "self", "directory"] {
        let tar = Tar::new().symlink("up", "..").directory("directory", 0o755);
        let offset = tar.offset();
        let tar =
            if target == "up" { tar.hard_link("self", "self/up") } else { tar.hard_link("self", target) };
        let (at, reason) = refused(&tar.end());
        assert!(matches!(reason, Refusal::HardLink { .. }), "{target}: {reason}");
        assert_eq!(at, offset, "{target}");
    }
}

#[test]
fn links_in_a_circle_end() {
    let tar = Tar::new().symlink("a", "b").symlink("b", "a");
    let offset = tar.offset();
    let (at, reason) = refused(&tar.file("a/x", "").end());
    assert_eq!(at, offset);
    assert!(matches!(reason, Refusal::TooManyLinks(..)), "{reason}");
}

#[test]
fn depth_and_length_of_paths_end() {
    let deep = Tar::new().pax(&[("path", "d/".repeat(300).as_bytes())]).directory("x", 0o755);
    assert!(matches!(refused(&deep.end()), (1536, Refusal::TooDeep(..))));
    let long = vec![format!("{}/", "l".repeat(255)); 20].concat();
    let long = Tar::new().pax(&[("path", format!("{long}f").as_bytes())]).file("x", "");
    assert!(matches!(refused(&long.end()).1, Refusal::TooLong { .. }));
    let name = Tar::new().pax(&[("path", "n".repeat(256).as_bytes())]).file("x", "");
    assert!(matches!(refused(&name.end()).1, Refusal::Kernel { .. }));
}

#[test]
fn sizes_that_lie_are_refused_where_they_stand() {
    let negative = Tar::new().file("a", "").header(b'0', b"n", 0, |header| {
        header.as_old_mut().size = *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    });
    assert_eq!(refused(&negative.end()), (512, Refusal::NegativeSize));
    let pax = Tar::new().pax(&[("size", b"-1")]).file("n", "");
    assert_eq!(refused(&pax.end()), (1024, Refusal::NegativeSize));
    let huge = Tar::new().header(b'0', b"huge", 1 << 40, |_| {});
    assert_eq!(refused(&huge.end()).1, Refusal::Truncated("an entry's content"));
    for (kind, what) in [(b'x', "an extended header"), (b'L', "a long name"), (b'K', "a long link name")] {
        let special = Tar::new().header(kind, b"huge", 1 << 40, |_| {});
        assert_eq!(refused(&special.end()), (0, Refusal::TooLong { what, limit: 1 << 20 }));
    }
}

#[test]
fn a_cut_layer_is_refused_at_the_cut() {
    let tar = Tar::new().file("a", "0123456789").end();
    assert_eq!(refused(&tar[..516]), (516, Refusal::Truncated("an entry's content")));
    assert_eq!(refused(&tar[..100]), (100, Refusal::Truncated("a header")));
    let lone_zeros = Tar::new().raw(&[0; 512]).file("a", "").end();
    assert_eq!(refused(&lone_zeros), (0, Refusal::LoneZeroBlock));
}

#[test]
fn headers_that_are_none_are_refused() {
    let mut tar = Tar::new().file("a", "").file("b", "").end();
    tar[512 + 3] ^= 1;
    assert_eq!(refused(&tar), (512, Refusal::Checksum));
    let number = Tar::new().header(b'0', b"a", 0, |header| header.as_old_mut().mode = *b"0009644\0");
    assert_eq!(refused(&number.end()), (0, Refusal::Number("mode")));
    for kind in *b"7VMDNAZ" {
        let tar = Tar::new().file("a", "1").entry(kind, b"odd", b"", |_| {});
        let reason = Refusal::Kind { name: "odd".into(), kind: char::from(kind) };
        assert_eq!(refused(&tar.end()), (1024, reason));
    }
}

#[test]
fn extended_headers_that_lie_are_refused() {
    for (records, offset) in [(&b"99 path=x\n"[..], 0), (b"11 path=\0ab\n", 0), (b"8 path=\n8", 0)] {
        let tar = Tar::new().entry(b'x', b"pax", records, |_| {}).file("a", "");
        let (at, reason) = refused(&tar.end());
        assert!(matches!(reason, Refusal::Pax(_)), "{reason}");
        assert_eq!(at, offset);
    }
    let value = Tar::new().pax(&[("mtime", b"yesterday")]).file("a", "");
    assert_eq!(refused(&value.end()), (1024, Refusal::PaxValue("mtime")));
    // Each header replaces the one before it, so that a chain of them holds no memory.
    let chain = (0..1000).fold(Tar::new(), |tar, at| tar.pax(&[("path", format!("n{at}").as_bytes())]));
    let (staging, _) = unpacked(chain.file("x", ""));
    assert!(staging.join("n999").exists() && !staging.join("n998").exists());
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &[u8], count: &[u8]| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.size", b"100"), ("GNU.sparse.numblocks", count), ("GNU.sparse.map", map)];
        refused(&Tar::new().pax(records).file("a", "1234").end()).1
    };
    for (map, count) in [
        (&b"0,5"[..], &b"1"[..]),
        (b"98,4", b"1"),
        (b"-4,4", b"1"),
        (b"0,4", b"2"),
        (b"0,x", b"1"),
        (b"0", b"1"),
    ] {
        assert!(matches!(sparse(map, count), Refusal::Sparse(_)), "{}", map.escape_ascii());
    }
}

#[test]
fn odd_whiteouts_are_refused() {
    for name in [".wh.", "d/.wh..", ".wh..."] {
        assert!(matches!(refused(&Tar::new().file(name, "").end()).1, Refusal::Whiteout(_)), "{name}");
    }
    let tar = Tar::new().file("a", "").file("a/b", "").end();
    assert_eq!(refused(&tar), (512, Refusal::NotADirectory("a".into())));
    let tar = Tar::new().entry(b'2', b"empty", b"", |header| set_link(header, "")).end();
    assert!(matches!(refused(&tar), (0, Refusal::Kernel { .. })));
}

#[test]
fn broken_compression_is_refused_and_a_failing_source_is_not() {
    let tar = Tar::new().file("a", &"1".repeat(10_000)).end();
    let diff_id = sha256(&tar);
    let layer = Layer { compression: Compression::Gzip, diff_id: &diff_id, bottom: true };
    let gzipped = gzip(&tar);
    let mut flipped = gzipped.clone();
    flipped[gzipped.len() / 2] ^= 0x55;
    let garbage = [gzipped.clone(), b"garbage".to_vec()].concat();
    let window = zstd_window(&tar, 28);
    for broken in [&gzipped[..gzipped.len() - 4], &gzipped[..30], &flipped, &garbage, &window] {
        let error = unpack(&layer, broken, &Staging::new().path()).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { reason: Refusal::Compression(_), .. }), "{error:?}");
    }
    let failing = io::Read::chain(&gzipped[..30], Failing);
    let error = unpack(&layer, failing, &Staging::new().path()).unwrap_err();
    assert!(matches!(&error, UnpackError::Read(source) if source.kind() == io::ErrorKind::ConnectionReset));
}

fn zstd_window(bytes: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Failing;

impl io::Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn another_diff_id_is_named() {
    let tar = Tar::new().file("a", "1").end();
    let other = sha256(b"other");
    let layer = Layer { compression: Compression::None, diff_id: &other, bottom: true };
    let error = unpack(&layer, &tar[..], &Staging::new().path()).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { actual, .. } if actual == sha256(&tar)));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever is flipped in a layer: it is unpacked or refused, nothing panics, nothing leaves.
    #[test]
    fn flipped_bytes_do_no_harm(flips in proptest::collection::vec((0..8192_usize, 0..=255_u8), 1..6), fix in proptest::bool::ANY) {
        let mut tar = Tar::new()
            .pax(&[("path", b"d/file"), ("SCHILY.xattr.user.a", b"1"), ("mtime", b"1.5")])
            .file("x", "content")
            .symlink("up", "../..")
            .file("up/secret", "1")
            .hard_link("h", "d/file")
            .file("d/.wh.gone", "")
            .end();
        let len = tar.len();
        for (at, byte) in flips {
            tar[at % len] = byte;
        }
        if fix {
            mend_checksums(&mut tar);
        }
        let staging = Staging::new();
        let _ = unpack_bytes(&tar, &staging.path(), false);
        staging.assert_confined();
    }
}

/// Makes every block a header with a right checksum, so that damage gets past it.
fn mend_checksums(tar: &mut [u8]) {
    for block in tar.as_chunks_mut::<512>().0.iter_mut().filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
