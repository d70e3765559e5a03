//! What tags meant when their registry last said so to this node: for the time when it does not answer.
//!
//! No digest proves what a tag means. So only what a registry itself has said is kept, never what another member has;
//! what others have heard from theirs counts where the settings say so, and is not told on.
//! It outlives the daemon in one file, which one task writes, the whole of it at a time: at a crash the last second of
//! it is lost, no more, unless the disk would not take it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Pulls;
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
/// A disk that would not take them is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// That a tag means what it meant is written again only so much later.
const WRITTEN_FOR: Duration = Duration::from_hours(24);
/// What members have said counts for so long, also that they have said nothing: as long as a registry is left alone that
/// was down.
const HEARD_FOR: Duration = Duration::from_secs(5);
/// Tags of which that is remembered.
const HEARD_MAX: usize = 1024;
/// Tags that members are asked about at the same time.
const QUESTIONS: usize = 8;

/// What tags mean while their registry is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OfflineTags {
    #[default]
    No,
    /// What it last said to this node.
    Own,
    /// The latest that it said to two members, this node among them; else what it said to this one; else to any.
    Members,
}

/// What a tag stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meaning {
    pub digest: Digest,
    /// Bytes of the manifest.
    pub len: u64,
    /// Empty if nobody has proven it.
    pub media_type: String,
}

impl Meaning {
    fn can_be(&self) -> bool {
        let is_type = self.media_type.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        self.len <= BLOB_LEN_MAX && self.media_type.len() <= MEDIA_TYPE_LEN_MAX && is_type
    }
}

/// A tag of a repository, by the SHA-256 of its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Digest);

impl Key {
    #[must_use]
    pub fn of(repository: &Repository, tag: &str) -> Self {
        Self(Digest::of(Algorithm::Sha256, format!("{repository}:{tag}").as_bytes()))
    }
}

/// What a registry has said, and when, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When what is on disk of each was said; of one that is not there, never.
    written: HashMap<Digest, u64>,
    is_written: bool,
}

/// What members have said of a tag, and when they were asked.
type Heard = (Vec<Said>, Instant);

/// Remembers what tags meant. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tags(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counts: OfflineTags,
    memory: Mutex<Memory>,
    changed: Notify,
    heard: Mutex<HashMap<Digest, Heard>>,
    questions: Semaphore,
}

impl Tags {
    /// What the store has kept of them, if any of it `counts`. Blocks.
    pub(super) fn open(store: &Store, counts: OfflineTags) -> Self {
        let kept = || store.kept_file(FILE).map(|bytes| bytes.map(|bytes| read(&bytes)));
        let said = match if counts == OfflineTags::No { Ok(None) } else { kept() } {
            Ok(None) => HashMap::new(),
            Ok(Some(Ok(said))) => said,
            Ok(Some(Err(error))) => {
                tracing::warn!(
                    "forgot what tags meant: {FILE} in the data folder is not what was written: {error}"
                );
                HashMap::new()
            }
            Err(error) => {
                tracing::warn!("forgot what tags meant: cannot read {FILE} in the data folder: {error}");
                HashMap::new()
            }
        };
        let written = said.iter().map(|(name, said)| (name.clone(), said.at)).collect();
        Self(Arc::new(Inner {
            counts,
            memory: Mutex::new(Memory { said, written, is_written: true }),
            changed: Notify::new(),
            heard: Mutex::default(),
            questions: Semaphore::new(QUESTIONS),
        }))
    }

    /// For another member, by the digest of the name: JSON, [`SAID_LEN_MAX`] bytes at most. Nothing, unless what members
    /// have heard counts here as well: who can name a tag could have what it stands for.
    #[must_use]
    pub fn told(&self, name: &Digest) -> Option<Vec<u8>> {
        if self.0.counts != OfflineTags::Members {
            return None;
        }
        let said = self.last(name)?;
        Some(serde_json::to_vec(&said).expect("names and numbers"))
    }

    /// The registry has just said so.
    pub fn note(&self, key: Key, meaning: Meaning, now: SystemTime) {
        if self.0.counts == OfflineTags::No || !meaning.can_be() {
            return;
        }
        let (Key(name), said) = (key, Said { meaning, at: seconds(now) });
        let mut memory = self.0.memory.lock();
        let memory = &mut *memory;
        let known = memory.said.get(&name);
        let is_new = known.is_none_or(|known| known.meaning != said.meaning);
        if known.is_none() && memory.said.len() >= TAGS_MAX {
            let oldest = memory.said.iter().min_by_key(|(_, said)| said.at).map(|(name, _)| name.clone());
            oldest.map(|oldest| memory.said.remove(&oldest));
        }
        let written_at = memory.written.get(&name).copied().unwrap_or_default();
        let is_old = said.at.abs_diff(written_at) > WRITTEN_FOR.as_secs();
        memory.said.insert(name, said);
        if is_new || is_old {
            memory.is_written = false;
            self.0.changed.notify_one();
        }
    }

    /// The registry has just said that there is no such tag, or somebody has changed it.
    pub fn forget(&self, key: &Key) {
        let mut memory = self.0.memory.lock();
        if memory.said.remove(&key.0).is_some() {
            memory.is_written = false;
            self.0.changed.notify_one();
        }
    }

    fn last(&self, name: &Digest) -> Option<Said> {
        self.0.memory.lock().said.get(name).cloned()
    }

    /// Writes what changes, until the daemon stops and once more then.
    pub(super) async fn keep(self, store: Store, tasks: TaskTracker, stop: CancellationToken) {
        let (mut goes_on, mut pause) = (true, PAUSE);
        while goes_on {
            let changed = async {
                self.0.changed.notified().await;
                tokio::time::sleep(pause).await;
            };
            goes_on = stop.run_until_cancelled(changed).await.is_some();
            let (tags, store) = (self.clone(), store.clone());
            // One that panicked has said so.
            let written = tasks.spawn_blocking(move || tags.write(&store)).await.unwrap_or(Ok(()));
            if let Err(error) = &written {
                if pause == PAUSE {
                    tracing::warn!(
                        "what tags mean is not kept: cannot write {FILE} in the data folder: {error}"
                    );
                }
                self.0.changed.notify_one();
            }
            pause = if written.is_ok() { PAUSE } else { TRY_AGAIN };
        }
    }

    fn write(&self, store: &Store) -> std::io::Result<()> {
        let said = {
            let mut memory = self.0.memory.lock();
            if std::mem::replace(&mut memory.is_written, true) {
                return Ok(());
            }
            memory.said.clone()
        };
        let bytes = serde_json::to_vec(&said).expect("names and numbers");
        let kept = store.keep_file(FILE, &bytes);
        let mut memory = self.0.memory.lock();
        match &kept {
            Ok(()) => memory.written = said.into_iter().map(|(name, said)| (name, said.at)).collect(),
            Err(_) => memory.is_written = false,
        }
        kept
    }

    /// What members were heard to say a moment ago.
    fn heard(&self, name: &Digest, now: Instant) -> Option<Vec<Said>> {
        let heard = self.0.heard.lock();
        let (said, at) = heard.get(name)?;
        (now.saturating_duration_since(*at) < HEARD_FOR).then(|| said.clone())
    }

    fn hear(&self, name: &Digest, said: Vec<Said>, now: Instant) {
        let mut heard = self.0.heard.lock();
        heard.retain(|_, (_, at)| now.saturating_duration_since(*at) < HEARD_FOR);
        if heard.len() < HEARD_MAX {
            heard.insert(name.clone(), (said, now));
        }
    }
}

impl Pulls {
    /// What a tag means while its registry is down, as far as the settings let that count, and whether this node heard it
    /// itself.
    pub async fn meaning(&self, key: &Key) -> Option<(Meaning, bool)> {
        let (tags, Key(name)) = (self.tags(), key);
        match tags.0.counts {
            OfflineTags::No => None,
            OfflineTags::Own => tags.last(name).map(|said| (said.meaning, true)),
            OfflineTags::Members => {
                let others = match tags.heard(name, Instant::now()) {
                    Some(said) => said,
                    None => self.ask_about(name).await,
                };
                choose(tags.last(name), others, SystemTime::now())
            }
        }
    }

    async fn ask_about(&self, name: &Digest) -> Vec<Said> {
        let tags = self.tags();
        let Ok(_one_of_few) = tags.0.questions.acquire().await else { return Vec::new() };
        // Somebody else may have asked meanwhile.
        if let Some(said) = tags.heard(name, Instant::now()) {
            return said;
        }
        let said = self.said_elsewhere(name).await;
        tags.hear(name, said.clone(), Instant::now());
        said
    }
}

/// What counts of what a registry has said to this node and to others, and whether this node heard it itself.
fn choose(own: Option<Said>, others: Vec<Said>, now: SystemTime) -> Option<(Meaning, bool)> {
    let now = seconds(now);
    let latest = |of: &Meaning| {
        let same = own.iter().chain(&others).filter(|said| said.meaning == *of);
        same.map(|said| said.at.min(now)).max().unwrap_or_default()
    };
    let agreed = |of: &&Meaning| own.iter().chain(&others).filter(|said| said.meaning == **of).count() > 1;
    let all = || own.iter().chain(&others).map(|said| &said.meaning);
    let by_two = all().filter(agreed).max_by_key(|of| latest(of));
    let chosen =
        by_two.or(own.as_ref().map(|said| &said.meaning)).or_else(|| all().max_by_key(|of| latest(of)))?;
    let is_own = own.as_ref().is_some_and(|said| said.meaning == *chosen);
    // A member's word on what an honest digest is would be remembered.
    let media_type = if is_own { chosen.media_type.clone() } else { String::new() };
    Some((Meaning { media_type, ..chosen.clone() }, is_own))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
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

    fn last(tags: &Tags, tag: &str) -> Option<Meaning> {
        tags.last(&key(tag).0).map(|said| said.meaning)
    }

    #[tokio::test]
    async fn what_a_tag_meant_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let opened = store(dir.path());
        let tags = Tags::open(&opened, OfflineTags::Members);
        let keeping = tasks.spawn(tags.clone().keep(opened.clone(), tasks.clone(), stop.clone()));
        tags.note(key("v1"), meaning(1), at(7));
        tags.note(key("v1"), meaning(2), at(8));
        tags.note(key("gone"), meaning(2), at(8));
        tags.forget(&key("gone"));
        stop.cancel();
        keeping.await.unwrap();
        drop(opened);
        let opened = store(dir.path());
        assert_eq!(last(&Tags::open(&opened, OfflineTags::No), "v1"), None);
        let tags = Tags::open(&opened, OfflineTags::Members);
        assert_eq!(
            (last(&tags, "v1"), last(&tags, "v2"), last(&tags, "gone")),
            (Some(meaning(2)), None, None)
        );
        let told: Said = serde_json::from_slice(&tags.told(&key("v1").0).unwrap()).unwrap();
        assert_eq!(told, Said { meaning: meaning(2), at: 8 });
        let own = Tags::open(&opened, OfflineTags::Own);
        assert!(last(&own, "v1").is_some() && own.told(&key("v1").0).is_none(), "it is nobody else's");
    }

    #[test]
    fn a_file_that_is_not_what_was_written_costs_what_was_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.keep_file(FILE, b"{\"sha256:00\": 1}").unwrap();
        let tags = Tags::open(&store, OfflineTags::Own);
        assert_eq!(last(&tags, "v1"), None);
        tags.note(key("v1"), meaning(1), at(7));
        tags.write(&store).unwrap();
        assert_eq!(last(&Tags::open(&store, OfflineTags::Own), "v1"), Some(meaning(1)));
    }

    #[test]
    fn what_the_disk_would_not_take_is_written_later_and_what_is_there_once_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let tags = Tags::open(&store, OfflineTags::Own);
        // Nothing can be renamed over a directory.
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        tags.note(key("v1"), meaning(1), at(7));
        tags.write(&store).unwrap_err();
        assert!(!tags.0.memory.lock().is_written);
        std::fs::remove_dir(dir.path().join(FILE)).unwrap();
        tags.write(&store).unwrap();
        tags.note(key("v1"), meaning(1), at(7 + WRITTEN_FOR.as_secs()));
        assert!(tags.0.memory.lock().is_written);
        assert_eq!(tags.last(&key("v1").0).unwrap().at, 7 + WRITTEN_FOR.as_secs(), "heard is heard");
        tags.note(key("v1"), meaning(1), at(8 + WRITTEN_FOR.as_secs()));
        assert!(!tags.0.memory.lock().is_written);
    }

    #[test]
    fn the_oldest_goes_where_there_is_no_room_and_nothing_long_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::open(&store(dir.path()), OfflineTags::Members);
        let longest = Meaning { media_type: "x".repeat(MEDIA_TYPE_LEN_MAX), len: BLOB_LEN_MAX, ..meaning(1) };
        for number in 0..TAGS_MAX {
            tags.note(key(&number.to_string()), longest.clone(), at(u64::MAX >> 3));
        }
        tags.note(key("0"), meaning(3), at(5));
        tags.note(key("one more"), meaning(1), at(9));
        assert_eq!((last(&tags, "0"), last(&tags, "1")), (None, Some(longest)));
        assert_eq!(last(&tags, "one more"), Some(meaning(1)));
        assert!(tags.told(&key("1").0).unwrap().len() <= SAID_LEN_MAX);
        for media_type in ["x".repeat(MEDIA_TYPE_LEN_MAX + 1), "a\nb".to_owned()] {
            tags.note(key("odd"), Meaning { media_type, ..meaning(1) }, at(9));
        }
        assert_eq!(last(&tags, "odd"), None);
    }

    #[test]
    fn what_two_have_heard_last_counts_before_what_one_has() {
        let said = |byte, at| Said { meaning: meaning(byte), at };
        let unproven = |byte| Meaning { media_type: String::new(), ..meaning(byte) };
        let choose = |own, others| choose(own, others, at(100));
        assert_eq!(choose(None, vec![]), None);
        assert_eq!(choose(None, vec![said(1, 5), said(2, 7)]), Some((unproven(2), false)));
        let old_and_new = vec![said(1, 5), said(1, 6), said(1, 6), said(2, 8), said(2, 7)];
        assert_eq!(choose(None, old_and_new.clone()), Some((unproven(2), false)), "fewer, and later");
        assert_eq!(choose(Some(said(1, 4)), old_and_new), Some((unproven(2), false)));
        // One that lies about what it heard, or when.
        assert_eq!(choose(Some(said(1, 4)), vec![said(3, u64::MAX)]), Some((meaning(1), true)));
        assert_eq!(choose(None, vec![said(1, 4), said(1, 4), said(3, u64::MAX)]), Some((unproven(1), false)));
        assert_eq!(choose(Some(said(2, 8)), vec![said(2, 7), said(1, 9)]), Some((meaning(2), true)));
    }

    #[test]
    fn what_members_say_is_asked_for_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let (tags, start) = (Tags::open(&store(dir.path()), OfflineTags::Members), Instant::now());
        let Key(name) = key("v1");
        assert_eq!(tags.heard(&name, start), None);
        tags.hear(&name, Vec::new(), start);
        assert_eq!(tags.heard(&name, start + HEARD_FOR / 2), Some(Vec::new()));
        assert_eq!(tags.heard(&name, start + HEARD_FOR), None);
    }
}
