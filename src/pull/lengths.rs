//! How long a blob is, asked of the members: for a client that knows no more than a digest, while its registry is down.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};

use super::Pulls;
use crate::{mesh::Member, oci::Digest};

/// Members asked, the first of the digest's rank before others: as many as are asked who holds a blob.
const ASKED_MAX: usize = 128;
/// Asked at the same time.
const AT_ONCE: usize = 16;
/// For all of them together; a member answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A decimal number below 2^64.
const LEN_DIGITS_MAX: usize = 20;

impl Pulls {
    /// The length of a blob that another member has, as the first of them says. It is believed no further than to ask
    /// for the blob: one of another length has another digest.
    pub async fn len_elsewhere(&self, digest: &Digest) -> Option<u64> {
        let members = self.0.mesh.rank(digest);
        let me = self.0.mesh.me().name;
        let others = members.into_iter().filter(|member| member.name != me).take(ASKED_MAX);
        let answers =
            stream::iter(others).map(|member| self.len_at(member, digest)).buffer_unordered(AT_ONCE);
        let mut found = std::pin::pin!(answers.filter_map(std::future::ready));
        tokio::time::timeout(ANSWER_MAX, found.next()).await.ok().flatten()
    }

    async fn len_at(&self, member: Member, digest: &Digest) -> Option<u64> {
        let answer = self.0.mesh.get(&member, &format!("/v1/blobs/{digest}/length")).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let text = Limited::new(answer.into_body(), LEN_DIGITS_MAX).collect().await.ok()?.to_bytes();
        std::str::from_utf8(&text).ok()?.parse().ok()
    }
}
