//! What the members say while a registry is down: how long a blob is of which a client knows no more than the digest, and
//! what a tag meant.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};

use super::{
    Pulls,
    tags::{Key, Meaning, SAID_LEN_MAX, Said},
};
use crate::{mesh::Member, oci::Digest, piece::BLOB_LEN_MAX};

/// Members asked, the first of the digest's rank before others: as many as are asked who holds a blob.
const ASKED_MAX: usize = 128;
/// Asked at the same time.
const AT_ONCE: usize = 16;
/// For all of them together; a member answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Members that say the same.
const ENOUGH: usize = 3;
/// Lengths that are tried: each that is wrong costs the client the time of a pull that finds nobody.
const TRIED_MAX: usize = 3;
/// A decimal number below 2^64.
const LEN_DIGITS_MAX: usize = 20;

impl Pulls {
    /// The lengths that a blob has which other members have, as they say: first what most of them say. They are believed
    /// no further than to ask for the blob, with one after the other: one of another length has another digest.
    pub async fn lens_elsewhere(&self, digest: &Digest) -> Vec<u64> {
        let read = |bytes: &[u8]| {
            let len = std::str::from_utf8(bytes).ok()?.parse().ok().filter(|len| *len <= BLOB_LEN_MAX)?;
            Some((len, 0))
        };
        let mut lens = self.votes(digest, &format!("/v1/blobs/{digest}/length"), LEN_DIGITS_MAX, read).await;
        lens.truncate(TRIED_MAX);
        lens
    }

    /// What a tag meant when its registry last said so to other members: what most of them say, and of several that as
    /// many say the latest. No digest proves it.
    pub async fn meaning_elsewhere(&self, key: &Key) -> Option<Meaning> {
        let read = |bytes: &[u8]| {
            let Said { meaning, at } = serde_json::from_slice(bytes).ok().filter(Said::can_be)?;
            Some((meaning, at))
        };
        let path = format!("/v1/tags/{}", key.digest());
        self.votes(key.digest(), &path, SAID_LEN_MAX, read).await.into_iter().next()
    }

    /// What other members answer to `path`, first what most of them say. `read` makes an answer of at most `len_max`
    /// bytes into what is said and when that was true.
    async fn votes<T: PartialEq>(
        &self,
        key: &Digest,
        path: &str,
        len_max: usize,
        read: impl Fn(&[u8]) -> Option<(T, u64)>,
    ) -> Vec<T> {
        let members = self.0.mesh.rank(key);
        let me = self.0.mesh.me().name;
        let others = members.into_iter().filter(|member| member.name != me).take(ASKED_MAX);
        let answers =
            stream::iter(others).map(|member| self.said_by(member, path, len_max)).buffer_unordered(AT_ONCE);
        let until = tokio::time::Instant::now() + ANSWER_MAX;
        let mut answers = std::pin::pin!(answers);
        let mut votes = Votes::default();
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
            if let Some((said, at)) = answer.and_then(|bytes| read(&bytes)) {
                votes.count(said, at);
            }
            if votes.are_enough() {
                break;
            }
        }
        votes.in_order()
    }

    async fn said_by(&self, member: Member, path: &str, len_max: usize) -> Option<bytes::Bytes> {
        let answer = self.0.mesh.get(&member, path).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        Some(Limited::new(answer.into_body(), len_max).collect().await.ok()?.to_bytes())
    }
}

/// What members say, by how many, and when it was last true.
#[derive(Debug)]
struct Votes<T>(Vec<(T, usize, u64)>);

impl<T> Default for Votes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Votes<T> {
    fn count(&mut self, said: T, at: u64) {
        match self.0.iter_mut().find(|(known, ..)| *known == said) {
            Some((_, votes, latest)) => (*votes, *latest) = (*votes + 1, at.max(*latest)),
            None => self.0.push((said, 1, at)),
        }
    }

    /// So many agree that the others need not be heard.
    fn are_enough(&self) -> bool {
        self.0.iter().any(|(_, votes, _)| *votes >= ENOUGH)
    }

    fn in_order(mut self) -> Vec<T> {
        self.0.sort_by_key(|(_, votes, latest)| std::cmp::Reverse((*votes, *latest)));
        self.0.into_iter().map(|(said, ..)| said).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_members_say_is_tried_first() {
        let mut votes = Votes::default();
        [7, 9, 8, 9].into_iter().for_each(|len| votes.count(len, 0));
        assert!(!votes.are_enough());
        assert_eq!(votes.in_order(), [9, 7, 8]);
    }

    #[test]
    fn of_what_as_many_say_the_latest_counts() {
        let mut votes = Votes::default();
        [("old", 7), ("new", 9), ("old", 5), ("new", 1), ("older", 99)]
            .into_iter()
            .for_each(|(said, at)| votes.count(said, at));
        assert_eq!(votes.in_order(), ["new", "old", "older"]);
    }
}
