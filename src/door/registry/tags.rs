//! What tags mean: as the registry says, for a short while; as it last said, where it is down and the settings allow.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::known::MEDIA_TYPE_LEN_MAX;
use crate::oci::{Digest, Repository};

/// Tags remembered, with as many answers that are still fresh, of 2 KiB at most; beyond it all are asked for again.
const TAGS_MAX: usize = 1 << 14;

/// What a tag stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) digest: Digest,
    /// Bytes of the manifest.
    pub(super) len: u64,
    pub(super) media_type: String,
}

/// One question: a tag, in a form that the client takes, asked with its credentials (both hashed).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) repository: Repository,
    pub(super) tag: String,
    pub(super) accept: [u8; 32],
    pub(super) credential: [u8; 32],
}

#[derive(Debug, Default)]
struct Memory {
    fresh: HashMap<Question, (Meaning, Instant)>,
    /// Whoever asked.
    last: HashMap<(Repository, String), Meaning>,
}

/// Remembers answers.
#[derive(Debug)]
pub(super) struct Tags {
    fresh_for: Duration,
    memory: Mutex<Memory>,
}

impl Tags {
    pub(super) fn new(fresh_for: Duration) -> Self {
        Self { fresh_for, memory: Mutex::default() }
    }

    /// The registry's answer to this very question, if it is fresh.
    pub(super) fn fresh(&self, question: &Question, now: Instant) -> Option<Meaning> {
        let memory = self.memory.lock();
        let (meaning, at) = memory.fresh.get(question)?;
        (now.saturating_duration_since(*at) < self.fresh_for).then(|| meaning.clone())
    }

    /// What the registry last said to anybody, however long ago.
    pub(super) fn last(&self, repository: &Repository, tag: &str) -> Option<Meaning> {
        self.memory.lock().last.get(&(repository.clone(), tag.to_owned())).cloned()
    }

    pub(super) fn note(&self, question: Question, meaning: Meaning, now: Instant) {
        if meaning.media_type.len() > MEDIA_TYPE_LEN_MAX {
            return;
        }
        let mut memory = self.memory.lock();
        if memory.last.len() >= TAGS_MAX {
            memory.last.clear();
        }
        memory.last.insert((question.repository.clone(), question.tag.clone()), meaning.clone());
        if memory.fresh.len() >= TAGS_MAX {
            memory.fresh.retain(|_, (_, at)| now.saturating_duration_since(*at) < self.fresh_for);
        }
        if memory.fresh.len() >= TAGS_MAX {
            memory.fresh.clear();
        }
        memory.fresh.insert(question, (meaning, now));
    }

    /// Somebody has pushed something under this tag, or taken it away.
    pub(super) fn changed(&self, repository: &Repository, tag: &str) {
        let of_it = |question: &Question| question.repository == *repository && question.tag == tag;
        self.memory.lock().fresh.retain(|question, _| !of_it(question));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn an_answer_is_fresh_for_a_while_and_remembered_for_outages() {
        let (tags, start) = (Tags::new(Duration::from_secs(10)), Instant::now());
        let repository: Repository = "r.local/a".parse().unwrap();
        let question = |credential| Question {
            repository: repository.clone(),
            tag: "v1".into(),
            accept: [7; 32],
            credential: [credential; 32],
        };
        let digest = Digest::of(Algorithm::Sha256, b"");
        let meaning = Meaning { digest, len: 2, media_type: "m".into() };
        tags.note(question(1), meaning.clone(), start);
        assert_eq!(tags.fresh(&question(1), start + Duration::from_secs(9)), Some(meaning.clone()));
        assert_eq!(tags.fresh(&question(1), start + Duration::from_secs(10)), None);
        assert_eq!(tags.fresh(&question(2), start), None, "another client asks for itself");
        assert_eq!(tags.last(&repository, "v1"), Some(meaning.clone()));
        assert_eq!(tags.last(&repository, "v2"), None);
        tags.changed(&repository, "v1");
        assert_eq!(tags.fresh(&question(1), start), None, "it was pushed to");
        let long = Meaning { media_type: "x".repeat(256), ..meaning };
        tags.note(question(1), long, start);
        assert_eq!(tags.fresh(&question(1), start), None, "there is no such media type");
    }
}
