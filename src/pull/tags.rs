//! What tags meant when their registry last said so to this node: for the time when it does not answer.
//!
//! No digest proves what a tag means. So only what a registry itself has said is kept, never what another member has;
//! what others have heard from theirs counts where the settings say so, and is not told on.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::Pulls;
use crate::{
    oci::{Algorithm, Digest, MEDIA_TYPE_LEN_MAX, Repository},
    piece::BLOB_LEN_MAX,
    store::{File, Kept},
};

/// Tags remembered, of 200 bytes each and [`SAID_LEN_MAX`] at most; beyond it whichever its registry spoke of longest ago goes.
const TAGS_MAX: usize = 1 << 14;
/// An entry as JSON, at its longest.
pub(super) const SAID_LEN_MAX: usize = 1024;
/// Where they are kept.
pub(super) const FILE: File = File { name: "tags.json", about: "what tags mean" };
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
    /// What was said then is on disk, or will be.
    #[serde(skip)]
    written_at: u64,
}

impl Said {
    pub(super) fn can_be(&self) -> bool {
        self.meaning.can_be()
    }
}

/// What registries have said, by the digests of the tags' names.
pub(super) type Memory = HashMap<Digest, Said>;

/// What members have said of a tag, and when they were asked.
type Heard = (Vec<Said>, Instant);

/// Remembers what tags meant. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tags(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counts: OfflineTags,
    memory: Kept<Memory>,
    heard: Mutex<HashMap<Digest, Heard>>,
    questions: Semaphore,
}

impl Tags {
    /// `memory` is what is kept of them.
    pub(super) fn new(memory: Kept<Memory>, counts: OfflineTags) -> Self {
        let (heard, questions) = (Mutex::default(), Semaphore::new(QUESTIONS));
        Self(Arc::new(Inner { counts, memory, heard, questions }))
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
        let (Key(name), at) = (key, seconds(now));
        self.0.memory.change(|memory| {
            let known = memory.get(&name);
            let same = known.filter(|known| known.meaning == meaning).map(|known| known.written_at);
            let written_at = same.filter(|written| at.abs_diff(*written) <= WRITTEN_FOR.as_secs());
            if known.is_none() && memory.len() >= TAGS_MAX {
                let oldest = memory.iter().min_by_key(|(_, said)| said.at).map(|(name, _)| name.clone());
                oldest.map(|oldest| memory.remove(&oldest));
            }
            memory.insert(name, Said { meaning, at, written_at: written_at.unwrap_or(at) });
            written_at.is_none()
        });
    }

    /// The registry has just said that there is no such tag, or somebody has changed it.
    pub fn forget(&self, key: &Key) {
        self.0.memory.change(|memory| memory.remove(&key.0).is_some());
    }

    fn last(&self, name: &Digest) -> Option<Said> {
        self.0.memory.read(|memory| memory.get(name).cloned()).filter(Said::can_be)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Settings, Store};

    fn tags(counts: OfflineTags) -> (Tags, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { dir: dir.path().to_owned(), sync: false, ..Settings::default() };
        (Tags::new(Kept::open(&Store::open(settings).unwrap(), FILE), counts), dir)
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

    #[test]
    fn what_a_registry_said_last_counts_where_the_settings_say_so() {
        for counts in [OfflineTags::No, OfflineTags::Own, OfflineTags::Members] {
            let (tags, _dir) = tags(counts);
            tags.note(key("v1"), meaning(1), at(7));
            tags.note(key("v1"), meaning(2), at(8));
            tags.note(key("gone"), meaning(2), at(8));
            tags.forget(&key("gone"));
            let counted = (counts != OfflineTags::No).then(|| meaning(2));
            assert_eq!((last(&tags, "v1"), last(&tags, "v2"), last(&tags, "gone")), (counted, None, None));
            let told = tags.told(&key("v1").0);
            assert_eq!(told.is_some(), counts == OfflineTags::Members, "else it is nobody else's");
            if let Some(told) = told {
                let told: Said = serde_json::from_slice(&told).unwrap();
                assert_eq!((told.meaning, told.at), (meaning(2), 8));
            }
        }
    }

    #[test]
    fn what_is_on_disk_is_written_again_once_a_day() {
        let (tags, _dir) = tags(OfflineTags::Own);
        let day = WRITTEN_FOR.as_secs();
        for (seconds, written_at) in [(7, 7), (8, 7), (7 + day, 7), (8 + day, 8 + day)] {
            tags.note(key("v1"), meaning(1), at(seconds));
            let said = tags.last(&key("v1").0).unwrap();
            assert_eq!((said.at, said.written_at), (seconds, written_at));
        }
    }

    #[test]
    fn the_oldest_goes_where_there_is_no_room_and_nothing_long_is_kept() {
        let (tags, _dir) = tags(OfflineTags::Members);
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
        let said = |byte, at| Said { meaning: meaning(byte), at, written_at: 0 };
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
        let ((tags, _dir), start) = (tags(OfflineTags::Members), Instant::now());
        let Key(name) = key("v1");
        assert_eq!(tags.heard(&name, start), None);
        tags.hear(&name, Vec::new(), start);
        assert_eq!(tags.heard(&name, start + HEARD_FOR / 2), Some(Vec::new()));
        assert_eq!(tags.heard(&name, start + HEARD_FOR), None);
    }
}
