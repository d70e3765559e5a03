//! Stories of blobs, told with a store in a directory of its own, on a machine whose clock and disk the test sets.

mod adopting;
mod arriving;
mod crash;
mod crowd;
mod limits;
mod offering;
mod rot;
mod start;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{
    Arriving, Blob, Settings, Shared, Store,
    host::{Host, Machine, Space},
};
use crate::{
    oci::{Algorithm, Digest},
    piece::{Chain, ChainBuilder, PieceLayout},
};

/// The length of these blobs' pieces.
const PIECE: u64 = 64 << 10;
/// Longer than anything a test writes.
const PLENTY: u64 = 1 << 40;

/// A machine with a clock and a disk that the test sets.
struct Lab {
    seconds: AtomicU64,
    free: AtomicU64,
}

impl Lab {
    fn later(&self, by: Duration) -> SystemTime {
        self.seconds.fetch_add(by.as_secs(), Ordering::Relaxed);
        self.time()
    }

    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds.load(Ordering::Relaxed))
    }

    fn set_free(&self, bytes: u64) {
        self.free.store(bytes, Ordering::Relaxed);
    }
}

impl Host for Arc<Lab> {
    fn now(&self) -> SystemTime {
        self.time()
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        Ok(Space { total: PLENTY, free: self.free.load(Ordering::Relaxed) })
    }
}

/// A directory for a store, and another that plays containerd's content store on the same file system.
struct Bench {
    root: tempfile::TempDir,
    lab: Arc<Lab>,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings {
            dir: root.path().join("store"),
            quota: Some(PLENTY),
            keep_free: Some(0),
            sync: false,
            ..Settings::default()
        };
        fs::create_dir(root.path().join("containerd")).unwrap();
        // Files that are made have the real time, so that is where the lab's begins.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let lab = Arc::new(Lab { seconds: AtomicU64::new(now.as_secs()), free: AtomicU64::new(PLENTY) });
        Self { root, lab, settings }
    }

    fn quota(mut self, bytes: u64) -> Self {
        self.settings.quota = Some(bytes);
        self
    }

    fn keep_free(mut self, bytes: u64) -> Self {
        self.settings.keep_free = Some(bytes);
        self
    }

    fn open(&self) -> Store {
        Store(Shared::open(&self.settings, Box::new(Arc::clone(&self.lab))).unwrap())
    }

    /// A store on the real clock and the real disk.
    fn open_for_real(&self) -> Store {
        Store(Shared::open(&self.settings, Box::new(Machine)).unwrap())
    }

    /// What containerd has after it committed these bytes.
    fn containerd_has(&self, sample: &Sample) -> PathBuf {
        let path = self.root.path().join("containerd").join(sample.digest.hex());
        fs::write(&path, &sample.bytes).unwrap();
        path
    }

    fn arriving_dir(&self, sample: &Sample) -> PathBuf {
        self.settings.dir.join("arriving").join(format!("sha256-{}", sample.digest.hex()))
    }

    fn blob_dir(&self, sample: &Sample) -> PathBuf {
        let hex = sample.digest.hex();
        self.settings.dir.join("blobs/sha256").join(&hex[..2]).join(hex)
    }
}

/// Bytes and what is true of them.
struct Sample {
    bytes: Vec<u8>,
    digest: Digest,
    layout: PieceLayout,
}

impl Sample {
    /// `len` bytes that no other seed gives.
    fn new(seed: u8, len: u64) -> Self {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Self { layout: PieceLayout::of(len), bytes, digest }
    }

    fn len(&self) -> u64 {
        self.layout.blob_len()
    }

    fn piece(&self, index: u32) -> &[u8] {
        let range = self.layout.range(index);
        &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }

    fn chain(&self) -> Chain {
        let mut builder = ChainBuilder::new(&self.digest, self.len());
        (0..self.layout.count()).for_each(|index| builder.push(self.piece(index)));
        builder.finish().unwrap()
    }

    fn write(&self, arriving: &Arriving, index: u32) -> io::Result<()> {
        arriving.write(index, self.piece(index), blake3::hash(self.piece(index)))
    }

    /// Arrives whole and is committed.
    fn put(&self, store: &Store) -> Blob {
        let arriving = store.arrive(&self.digest, self.len()).unwrap();
        (0..self.layout.count()).for_each(|index| self.write(&arriving, index).unwrap());
        arriving.commit(&self.chain()).unwrap()
    }

    /// Whether the store gives exactly these bytes.
    fn is_whole_in(&self, store: &Store) -> bool {
        store.get(&self.digest).is_some_and(|blob| {
            (0..self.layout.count()).all(|index| blob.read(index).unwrap() == self.piece(index))
        })
    }
}

/// What a bad disk does.
fn flip_a_bit(path: &Path, position: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, position).unwrap();
}

fn append(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn links(path: &Path) -> u64 {
    fs::metadata(path).unwrap().nlink()
}

/// A mount that goes with the test. Needs root, as all of these tests may expect.
struct Mounted(PathBuf);

impl Mounted {
    /// A small file system of its own.
    fn tmpfs(at: &Path, bytes: u64) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount("none", at, "tmpfs", MountFlags::empty(), size.as_c_str())
            .expect("mounts a tmpfs (the tests run as root)");
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("was mounted by us");
    }
}
