//! What an entry of a tar says, with all its extensions resolved.

use rustix::fs::Timespec;

/// One entry of a layer's tar, as its header and the extensions before it state it. Nothing of it is trusted yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset in the tar of the entry's own header.
    pub offset: u64,
    /// The path as it is written: not cleaned, not necessarily UTF-8, possibly hostile.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky bit (07777).
    pub mode: u32,
    /// All ones means "leave it as it is", as the kernel's chown has it.
    pub uid: u32,
    pub gid: u32,
    pub accessed: Time,
    pub modified: Time,
    /// Extended attributes (`SCHILY.xattr.*`): name without the prefix, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Extent),
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// The target is a path within the layer.
    HardLink {
        target: Vec<u8>,
    },
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    /// A global extended header. It makes nothing and its records are ignored, but it has a name, and containerd makes
    /// room for it like for any other entry.
    Global,
}

/// Number of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

/// Where a file's bytes go. The content that follows the entry is the segments' bytes in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length of the file.
    pub len: u64,
    /// In ascending order, without overlap, within `len`; whatever lies between them is a hole.
    pub segments: Vec<Segment>,
}

impl Extent {
    /// A file without holes.
    #[must_use]
    pub fn dense(len: u64) -> Self {
        let segments = if len == 0 { Vec::new() } else { vec![Segment { start: 0, len }] };
        Self { len, segments }
    }

    /// Bytes that the tar has for the file.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }
}

/// A run of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub len: u64,
}

/// A time in nanoseconds since 1970, as wide as any header can state it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i128);

impl Time {
    pub(crate) fn from_parts(seconds: i64, nanoseconds: i64) -> Self {
        Self(i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds))
    }

    /// The time as it is stamped on an inode. containerd takes times before 1970 and times that do not fit 63 bits of
    /// nanoseconds (2262) for 1970 (archive/time.go).
    pub(crate) fn stamp(self) -> Timespec {
        let nanoseconds = i64::try_from(self.0).unwrap_or(0).max(0);
        Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_out_of_containerds_range_become_1970() {
        let stamped = |seconds, nanoseconds| {
            let stamp = Time::from_parts(seconds, nanoseconds).stamp();
            (stamp.tv_sec, stamp.tv_nsec)
        };
        assert_eq!(stamped(1, 5), (1, 5));
        assert_eq!(stamped(0, -1), (0, 0));
        assert_eq!(stamped(-86_400, 0), (0, 0));
        assert_eq!(stamped(9_223_372_036, 854_775_807), (9_223_372_036, 854_775_807));
        assert_eq!(stamped(9_223_372_036, 854_775_808), (0, 0));
        assert_eq!(stamped(i64::MAX, 0), (0, 0));
    }
}
