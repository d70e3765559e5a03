//! A blob of 5 GB, and two hundred clients at once: what they get, and what it costs in memory.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use flotilla::oci::{Algorithm, Hasher};
use http::{Method, StatusCode};
use tokio::{net::TcpStream, sync::Barrier};
use tokio_util::task::TaskTracker;

use super::{Alone, Answer, noise, open};
use crate::registry::{Kind, Registry};

/// More than 32 bits count, in pieces of 4 MiB, the last one short.
const LEN: u64 = 5_000_000_123;
/// Blob, store and some room.
const DISK_NEEDED: u64 = 8_000_000_000;

/// Every mebibyte begins with its own number, and all else is nothing: 20 MB on the disk.
const STEP: u64 = 1 << 20;

/// What the daemon may have in memory at most, whatever its clients do: 96 MiB of pieces on their way in, 32 MiB on their
/// way out, 25 MiB of slices for 200 clients, 16 MiB for their readers; itself, and what the allocator keeps of buffers that
/// have come and gone on many threads, which is the rest of the 316 MiB that were seen.
const MEMORY_MAX_MIB: u64 = 384;

/// Compares what is read with what the blob has there.
struct Reader {
    at: u64,
    step: Vec<u8>,
}

impl Reader {
    fn at(at: u64) -> Self {
        Self { at, step: vec![0; usize::try_from(STEP).unwrap()] }
    }

    fn take(&mut self, mut part: &[u8]) {
        while !part.is_empty() {
            let (number, within) = (self.at / STEP, usize::try_from(self.at % STEP).unwrap());
            self.step[..8].copy_from_slice(&number.to_le_bytes());
            let len = part.len().min(self.step.len() - within);
            assert!(part[..len] == self.step[within..within + len], "wrong bytes from {} on", self.at);
            self.at += len as u64;
            part = &part[len..];
        }
    }
}

fn write_blob(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(LEN).unwrap();
    for number in 0..LEN.div_ceil(STEP) {
        file.write_all_at(&number.to_le_bytes(), number * STEP).unwrap();
    }
}

async fn opened(address: &str, path: &str, range: Option<&str>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let range = range.map(|range| ("range", range));
    let headers: Vec<_> = [("host", address)].into_iter().chain(range).collect();
    open(stream, (Method::GET, path), &headers, String::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_gigabytes_and_two_hundred_clients_in_bounded_memory() {
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let disk = rustix::fs::statvfs(place.path()).unwrap();
    if disk.f_bavail * disk.f_frsize < DISK_NEEDED {
        eprintln!("skipped: a blob of 5 GB takes {DISK_NEEDED} bytes of disk");
        return;
    }
    let registry = Registry::start().await;
    let file = place.path().join("blob");
    write_blob(&file);
    let (large, len) = registry.put_file("team/app", &file).unwrap();
    assert_eq!(len, LEN);
    let mut alone = Alone::start(|settings| {
        settings.text("store", "quota", "5500MiB");
    });
    let path = format!("/v2/team/app/blobs/{large}?ns={}", registry.host());

    assert_eq!(alone.head(&path).await.len(), LEN);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut whole = opened(&alone.address, &path, None).await;
    assert!(whole.status == StatusCode::OK && whole.each(|part| hasher.update(part)).await);
    assert_eq!(hasher.finish(), large);
    for (range, start, end) in [
        ("bytes=4294967290-4294967310", 4_294_967_290, 4_294_967_311),
        ("bytes=4999999000-", 4_999_999_000, LEN),
        ("bytes=-200", LEN - 200, LEN),
    ] {
        let mut reader = Reader::at(start);
        let mut part = opened(&alone.address, &path, Some(range)).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert!(part.each(|part| reader.take(part)).await && reader.at == end, "{range}");
    }
    assert_eq!(registry.body_bytes(Kind::Blob), LEN, "it left the registry once");
    eprintln!("5 GB, one client: {} MiB at most", alone.flotilla.memory_mib("VmHWM").unwrap());

    two_hundred(&mut alone, &registry, &path).await;
    assert_eq!(registry.body_bytes(Kind::Blob), LEN + WHOLE_LEN as u64);
}

/// Every other client reads a blob whole; between them each reads another part of the large one.
const WHOLE_LEN: usize = 24 << 20;
const PART_LEN: u64 = 20 << 20;

/// None of them reads on before all have been answered: until then the daemon holds something for each.
async fn two_hundred(alone: &mut Alone, registry: &Registry, large: &str) {
    let bytes = noise(WHOLE_LEN, 8);
    let name = registry.put_blob("team/app", bytes.clone());
    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let all_answered = Arc::new(Barrier::new(201));
    let (tasks, mut clients) = (TaskTracker::new(), Vec::new());
    for client in 0..200_u64 {
        let (barrier, address, bytes) = (all_answered.clone(), alone.address.clone(), bytes.clone());
        let (path, large) = (path.clone(), large.to_owned());
        clients.push(tasks.spawn(async move {
            if client % 2 == 0 {
                let mut answer = opened(&address, &path, None).await;
                barrier.wait().await;
                let mut got = 0;
                let as_it_is = |part: &[u8]| {
                    assert!(bytes[got..got + part.len()] == *part, "wrong bytes from {got} on");
                    got += part.len();
                };
                return answer.status == StatusCode::OK && answer.each(as_it_is).await && got == WHOLE_LEN;
            }
            let start = client * (LEN - PART_LEN) / 200;
            let range = format!("bytes={start}-{}", start + PART_LEN - 1);
            let mut answer = opened(&address, &large, Some(&range)).await;
            barrier.wait().await;
            let mut reader = Reader::at(start);
            let ended = answer.each(|part| reader.take(part)).await;
            answer.status == StatusCode::PARTIAL_CONTENT && ended && reader.at == start + PART_LEN
        }));
    }
    all_answered.wait().await;
    eprintln!("200 clients that take nothing: {} MiB", alone.flotilla.memory_mib("VmRSS").unwrap());
    for client in clients {
        assert!(client.await.unwrap());
    }
    let most = alone.flotilla.memory_mib("VmHWM").unwrap();
    eprintln!(
        "200 clients: {most} MiB at most, of it {} MiB the program itself",
        alone.flotilla.memory_mib("RssFile").unwrap()
    );
    assert!(most <= MEMORY_MAX_MIB, "{most} MiB");
}
