//! What tags meant when their registry last said so to this node: for the time when it does not answer.
//!
//! No digest proves what a tag means. So only what a registry itself has said is kept, never what another member has.
//! It outlives the daemon in one file, which one task writes, the whole of it at a time: at a crash the last second of
//! it is lost, no more.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    oci::{Algorithm, Digest, MEDIA_TYPE_LEN_MAX, Repository},
    piece::BLOB_LEN_MAX,
    store::Store,
};

/// Tags remembered, of 200 bytes each and [`SAID_LEN_MAX`] at most; beyond it whichever its registry spoke of longest ago goes.
const TAGS_MAX: usize = 1 << 14;
/// An entry as JSON, at its longest.
pub(super) const SAID_LEN_MAX: usize = 1024;
/// Where they are kept.
const FILE: &str = "tags.json";
/// Changes are written together: a rollout resolves many tags at once.
const PAUSE: Duration = Duration::from_secs(1);
/// That a tag means what it meant is written again only so much later.
const WRITTEN_FOR: Duration = Duration::from_hours(24);

/// What a tag stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meaning {
    pub digest: Digest,
    /// Bytes of the manifest.
    pub len: u64,
    pub media_type: String,
}

impl Meaning {
    fn can_be(&self) -> bool {
        let is_type = self.media_type.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        self.len <= BLOB_LEN_MAX && self.media_type.len() <= MEDIA_TYPE_LEN_MAX && is_type
    }
}

/// A tag of a repository, by the SHA-256 of its name: members are asked for one without being told its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Digest);

impl Key {
    #[must_use]
    pub fn of(repository: &Repository, tag: &str) -> Self {
        Self(Digest::of(Algorithm::Sha256, format!("{repository}:{tag}").as_bytes()))
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.0
    }
}

/// What a registry has said, and when, in seconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) meaning: Meaning,
    pub(super) at: u64,
}

impl Said {
    pub(super) fn can_be(&self) -> bool {
        self.meaning.can_be()
    }
}

#[derive(Debug, Default)]
struct Memory {
    said: HashMap<Digest, Said>,
    is_written: bool,
}

/// Remembers what tags meant. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tags(Arc<(Mutex<Memory>, Notify)>);

impl Tags {
    /// What the store has kept of them. Blocks.
    pub(super) fn open(store: &Store) -> Self {
        let said = match store.kept_file(FILE).map(|bytes| bytes.map(|bytes| read(&bytes))) {
            Ok(None) => HashMap::new(),
            Ok(Some(Ok(said))) => said,
            Ok(Some(Err(error))) => {
                tracing::warn!("forgot what tags meant: {FILE} in the data folder is not what was written: {error}");
                HashMap::new()
            }
            Err(error) => {
                tracing::warn!("forgot what tags meant: cannot read {FILE} in the data folder: {error}");
                HashMap::new()
            }
        };
        let memory = Memory { said, is_written: true };
        Self(Arc::new((Mutex::new(memory), Notify::new())))
    }

    /// What the registry last said to this node, however long ago.
    #[must_use]
    pub fn last(&self, key: &Key) -> Option<Meaning> {
        self.0.0.lock().said.get(&key.0).map(|said| said.meaning.clone())
    }

    /// The same for another member: JSON, [`SAID_LEN_MAX`] bytes at most.
    #[must_use]
    pub fn told(&self, key: &Digest) -> Option<Vec<u8>> {
        let said = self.0.0.lock().said.get(key).cloned()?;
        Some(serde_json::to_vec(&said).expect("names and numbers"))
    }

    /// The registry has just said so.
    pub fn note(&self, key: Key, meaning: Meaning, now: SystemTime) {
        let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if !meaning.can_be() {
            return;
        }
        let mut memory = self.0.0.lock();
        let known = memory.said.get(&key.0);
        let lasts = |said: &Said| said.meaning == meaning && at < said.at + WRITTEN_FOR.as_secs();
        if known.is_some_and(lasts) {
            return;
        }
        if known.is_none() && memory.said.len() >= TAGS_MAX {
            let oldest = memory.said.iter().min_by_key(|(_, said)| said.at).map(|(key, _)| key.clone());
            oldest.map(|oldest| memory.said.remove(&oldest));
        }
        memory.said.insert(key.0, Said { meaning, at });
        memory.is_written = false;
        drop(memory);
        self.0.1.notify_one();
    }

    /// Writes what changes, until the daemon stops and once more then.
    pub(super) async fn keep(self, store: Store, tasks: TaskTracker, stop: CancellationToken) {
        let mut goes_on = true;
        while goes_on {
            let changed = async {
                self.0.1.notified().await;
                tokio::time::sleep(PAUSE).await;
            };
            goes_on = stop.run_until_cancelled(changed).await.is_some();
            let (tags, store) = (self.clone(), store.clone());
            // One that panicked has said so.
            let _written = tasks.spawn_blocking(move || tags.write(&store)).await;
        }
    }

    fn write(&self, store: &Store) {
        let said = {
            let mut memory = self.0.0.lock();
            if std::mem::replace(&mut memory.is_written, true) {
                return;
            }
            memory.said.clone()
        };
        let bytes = serde_json::to_vec(&said).expect("names and numbers");
        if let Err(error) = store.keep_file(FILE, &bytes) {
            tracing::warn!("what tags mean is not kept for the next start: cannot write {FILE} in the data folder: {error}");
            self.0.0.lock().is_written = false;
        }
    }
}

fn read(bytes: &[u8]) -> Result<HashMap<Digest, Said>, serde_json::Error> {
    let mut said: HashMap<Digest, Said> = serde_json::from_slice(bytes)?;
    said.retain(|_, said| said.can_be());
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn store(dir: &std::path::Path) -> Store {
        Store::open(Settings { dir: dir.to_owned(), sync: false, ..Settings::default() }).unwrap()
    }

    fn key(tag: &str) -> Key {
        Key::of(&"r.local:5000/a".parse().unwrap(), tag)
    }

    fn meaning(byte: u8) -> Meaning {
        Meaning { digest: Digest::of(Algorithm::Sha256, &[byte]), len: 2, media_type: "a/b".into() }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn what_a_tag_meant_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let opened = store(dir.path());
        let tags = Tags::open(&opened);
        let keeping = tasks.spawn(tags.clone().keep(opened.clone(), tasks.clone(), stop.clone()));
        tags.note(key("v1"), meaning(1), at(7));
        tags.note(key("v1"), meaning(2), at(8));
        stop.cancel();
        keeping.await.unwrap();
        drop(opened);
        let tags = Tags::open(&store(dir.path()));
        assert_eq!(tags.last(&key("v1")), Some(meaning(2)));
        assert_eq!(tags.last(&key("v2")), None);
        let told: Said = serde_json::from_slice(&tags.told(key("v1").digest()).unwrap()).unwrap();
        assert_eq!((told.meaning, told.at), (meaning(2), 8));
    }

    #[test]
    fn a_file_that_is_not_what_was_written_costs_what_was_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.keep_file(FILE, b"{\"sha256:00\": 1}").unwrap();
        let tags = Tags::open(&store);
        assert_eq!(tags.last(&key("v1")), None);
        tags.note(key("v1"), meaning(1), at(7));
        tags.write(&store);
        assert_eq!(Tags::open(&store).last(&key("v1")), Some(meaning(1)));
    }

    #[test]
    fn the_oldest_goes_where_there_is_no_room_and_nothing_long_is_kept() {
        let tags = Tags::default();
        let longest = Meaning { media_type: "x".repeat(MEDIA_TYPE_LEN_MAX), len: BLOB_LEN_MAX, ..meaning(1) };
        for number in 0..TAGS_MAX {
            tags.note(key(&number.to_string()), longest.clone(), at(u64::MAX >> 3));
        }
        tags.note(key("0"), meaning(3), at(5));
        tags.note(key("one more"), meaning(1), at(9));
        assert_eq!(tags.last(&key("0")), None);
        assert_eq!(tags.last(&key("1")), Some(longest));
        assert_eq!(tags.last(&key("one more")), Some(meaning(1)));
        assert!(tags.told(key("1").digest()).unwrap().len() <= SAID_LEN_MAX);
        for media_type in ["x".repeat(MEDIA_TYPE_LEN_MAX + 1), "a\nb".to_owned()] {
            tags.note(key("odd"), Meaning { media_type, ..meaning(1) }, at(9));
        }
        assert_eq!(tags.last(&key("odd")), None);
    }
}
