//! How long a blob is, asked of the members: for a client that knows no more than a digest, while its registry is down.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};

use super::Pulls;
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
        let members = self.0.mesh.rank(digest);
        let me = self.0.mesh.me().name;
        let others = members.into_iter().filter(|member| member.name != me).take(ASKED_MAX);
        let answers =
            stream::iter(others).map(|member| self.len_at(member, digest)).buffer_unordered(AT_ONCE);
        let until = tokio::time::Instant::now() + ANSWER_MAX;
        let mut answers = std::pin::pin!(answers);
        let mut votes = Votes::default();
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
            answer.into_iter().for_each(|len| votes.count(len));
            if votes.are_enough() {
                break;
            }
        }
        votes.in_order()
    }

    async fn len_at(&self, member: Member, digest: &Digest) -> Option<u64> {
        let answer = self.0.mesh.get(&member, &format!("/v1/blobs/{digest}/length")).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let text = Limited::new(answer.into_body(), LEN_DIGITS_MAX).collect().await.ok()?.to_bytes();
        std::str::from_utf8(&text).ok()?.parse().ok().filter(|len| *len <= BLOB_LEN_MAX)
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
