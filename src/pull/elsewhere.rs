//! What the members say while a registry is down: how long a blob is of which a client knows no more than the digest, and
//! what a tag meant.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};

use super::{
    Pulls,
    tags::{SAID_LEN_MAX, Said},
};
use crate::{mesh::Member, oci::Digest, piece::BLOB_LEN_MAX};

/// Members asked, the first of the digest's rank before others: as many as are asked who holds a blob.
const ASKED_MAX: usize = 128;
/// Asked at the same time.
const AT_ONCE: usize = 16;
/// For all of them together; a member answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Members that say the same length.
const ENOUGH: usize = 3;
/// Lengths that are tried: each that is wrong costs the client the time of a pull that finds nobody.
const TRIED_MAX: usize = 3;
/// A decimal number below 2^64.
const LEN_DIGITS_MAX: usize = 20;

impl Pulls {
    /// The lengths that a blob has which other members have, as they say: first what most of them say. They are believed
    /// no further than to ask for the blob, with one after the other: one of another length has another digest.
    pub async fn lens_elsewhere(&self, digest: &Digest) -> Vec<u64> {
        let mut votes = Votes::default();
        let read = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
        self.each_answer(digest, &format!("/v1/blobs/{digest}/length"), LEN_DIGITS_MAX, |bytes| {
            read(bytes).filter(|len| *len <= BLOB_LEN_MAX).into_iter().for_each(|len| votes.count(len));
            votes.are_enough()
        })
        .await;
        votes.in_order()
    }

    /// What the registry of the tag that has this name's digest has said to other members.
    pub(super) async fn said_elsewhere(&self, name: &Digest) -> Vec<Said> {
        let mut said = Vec::new();
        self.each_answer(name, &format!("/v1/tags/{name}"), SAID_LEN_MAX, |bytes| {
            said.extend(serde_json::from_slice(bytes).ok().filter(Said::can_be));
            false
        })
        .await;
        said
    }

    /// Shows `take` what other members answer to `path`, at most `len_max` bytes each, until it has enough.
    async fn each_answer(
        &self,
        key: &Digest,
        path: &str,
        len_max: usize,
        mut take: impl FnMut(&[u8]) -> bool,
    ) {
        let members = self.0.mesh.rank(key);
        let me = self.0.mesh.me().name;
        let others = members.into_iter().filter(|member| member.name != me).take(ASKED_MAX);
        let answers =
            stream::iter(others).map(|member| self.said_by(member, path, len_max)).buffer_unordered(AT_ONCE);
        let until = tokio::time::Instant::now() + ANSWER_MAX;
        let mut answers = std::pin::pin!(answers);
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
            if answer.is_some_and(|bytes| take(&bytes)) {
                return;
            }
        }
    }

    async fn said_by(&self, member: Member, path: &str, len_max: usize) -> Option<Bytes> {
        let answer = self.0.mesh.get(&member, path).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        Some(Limited::new(answer.into_body(), len_max).collect().await.ok()?.to_bytes())
    }
}

/// What members say.
#[derive(Debug, Default)]
struct Votes(Vec<(u64, usize)>);

impl Votes {
    fn count(&mut self, len: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == len) {
            Some((_, votes)) => *votes += 1,
            None => self.0.push((len, 1)),
        }
    }

    /// So many agree that the others need not be heard.
    fn are_enough(&self) -> bool {
        self.0.iter().any(|(_, votes)| *votes >= ENOUGH)
    }

    fn in_order(mut self) -> Vec<u64> {
        self.0.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
        self.0.into_iter().map(|(len, _)| len).take(TRIED_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_members_say_is_tried_first() {
        let mut votes = Votes::default();
        [7, 9, 8, 9].into_iter().for_each(|len| votes.count(len));
        assert!(!votes.are_enough());
        assert_eq!(votes.in_order(), [9, 7, 8]);
    }
}
