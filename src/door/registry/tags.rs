//! What tags mean, as the registry has just said.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    oci::{MEDIA_TYPE_LEN_MAX, Repository},
    pull::Meaning,
};

/// Answers that are still fresh, of 2 KiB at most; beyond it all are asked for again.
const FRESH_MAX: usize = 1 << 14;

/// One question: a tag, in a form that the client takes, asked with its credentials (both hashed).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) repository: Repository,
    pub(super) tag: String,
    pub(super) accept: [u8; 32],
    pub(super) credential: [u8; 32],
}

/// Remembers answers for a short while.
#[derive(Debug)]
pub(super) struct Fresh {
    fresh_for: Duration,
    answers: Mutex<HashMap<Question, (Meaning, Instant)>>,
}

impl Fresh {
    pub(super) fn new(fresh_for: Duration) -> Self {
        Self { fresh_for, answers: Mutex::default() }
    }

    /// The registry's answer to this very question, if it is fresh.
    pub(super) fn get(&self, question: &Question, now: Instant) -> Option<Meaning> {
        let answers = self.answers.lock();
        let (meaning, at) = answers.get(question)?;
        (now.saturating_duration_since(*at) < self.fresh_for).then(|| meaning.clone())
    }

    pub(super) fn note(&self, question: Question, meaning: Meaning, now: Instant) {
        if meaning.media_type.len() > MEDIA_TYPE_LEN_MAX {
            return;
        }
        let mut answers = self.answers.lock();
        if answers.len() >= FRESH_MAX {
            answers.retain(|_, (_, at)| now.saturating_duration_since(*at) < self.fresh_for);
        }
        if answers.len() >= FRESH_MAX {
            answers.clear();
        }
        answers.insert(question, (meaning, now));
    }

    /// Somebody has pushed something under this tag, or taken it away.
    pub(super) fn changed(&self, repository: &Repository, tag: &str) {
        let of_it = |question: &Question| question.repository == *repository && question.tag == tag;
        self.answers.lock().retain(|question, _| !of_it(question));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn an_answer_is_fresh_for_a_while() {
        let (fresh, start) = (Fresh::new(Duration::from_secs(10)), Instant::now());
        let repository: Repository = "r.local/a".parse().unwrap();
        let question = |credential| Question {
            repository: repository.clone(),
            tag: "v1".into(),
            accept: [7; 32],
            credential: [credential; 32],
        };
        let digest = Digest::of(Algorithm::Sha256, b"");
        let meaning = Meaning { digest, len: 2, media_type: "m".into() };
        fresh.note(question(1), meaning.clone(), start);
        assert_eq!(fresh.get(&question(1), start + Duration::from_secs(9)), Some(meaning.clone()));
        assert_eq!(fresh.get(&question(1), start + Duration::from_secs(10)), None);
        assert_eq!(fresh.get(&question(2), start), None, "another client asks for itself");
        let long = Meaning { media_type: "x".repeat(256), ..meaning.clone() };
        fresh.note(question(3), long, start);
        assert_eq!(fresh.get(&question(3), start), None, "there is no such media type");
        fresh.changed(&repository, "v1");
        assert_eq!(fresh.get(&question(1), start), None, "it was pushed to");
    }
}
