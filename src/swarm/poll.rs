//! Who has a blob? Everybody is asked when a swarm begins.
//!
//! ```text
//!   up to 128 members:   tracker ──▶ each
//!   beyond:              tracker ──▶ 128, evenly spread over the ring of the members
//!                                      └─▶ those that come after it, up to the next that the tracker asks
//! ```
//! A large mesh's members keep connections to those that come after them in the ring, so that the question goes there
//! without a handshake; the last of them passes it on. What is found so is asked again by the tracker itself: a member
//! speaks for itself only.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    message::Name,
    tracker::{Answer, SILENCE_MAX},
    trackers::Trackers,
};
use crate::{
    mesh::{Member, WATCHED},
    oci::Digest,
    wire::mesh::{self as wire, holds_response::Answer as WireAnswer, swarm_client::SwarmClient},
};

/// Members that a question goes on to, one after the other: 78 in a mesh of ten thousand.
pub const NEXT_MAX: usize = 1024;
/// Names in an answer: as many sources as a pull has use for at first.
const OTHERS_MAX: usize = 16;
/// A neighbour that has not answered by then is done without: five in a row fit into the time for which answers count.
const HOP_MAX: Duration = Duration::from_millis(400);
/// Questions that a node passes on at a time.
pub(super) const RELAYS_MAX: usize = 64;

/// A member that a tracker asks, and how many after it that one is to ask.
struct Question {
    to: Member,
    next: usize,
    /// The first of those, who is asked in its place if it is not there.
    instead: Option<Member>,
}

/// What a member says of itself, and who else it has heard of.
struct Said {
    answer: Answer,
    others: Vec<Name>,
}

impl Said {
    const NOTHING: Self = Self { answer: Answer::Nothing, others: Vec::new() };
}

/// Whom to ask of `ring`, at most `asked_max`, so that everybody but `puller` is asked by somebody.
fn questions(ring: &[Member], puller: &str, asked_max: usize) -> Vec<Question> {
    let each = ring.len().div_ceil(asked_max).max(1);
    let of = |part: &[Member]| {
        let part = if part[0].name == puller { &part[1..] } else { part };
        let (to, after) = part.split_first()?;
        Some(Question { to: to.clone(), next: after.len().min(NEXT_MAX), instead: after.first().cloned() })
    };
    ring.chunks(each).filter_map(of).collect()
}

impl Trackers {
    /// Asks everybody but `puller` what they hold of a blob, whose swarm begins here; who is asked by this node itself.
    pub(super) fn poll(&self, digest: &Digest, puller: &str) -> Vec<Name> {
        let questions = questions(&self.0.mesh.ring(), puller, self.0.asked_max);
        let names = questions.iter().map(|question| question.to.name.clone()).collect();
        for question in questions {
            self.0.tasks.spawn(self.clone().ask_about(digest.clone(), question));
        }
        names
    }

    async fn ask_about(self, digest: Digest, question: Question) {
        let Question { to, instead, next } = question;
        let said = match timeout(SILENCE_MAX, self.ask(&to, &digest, next)).await {
            Ok(Some(said)) => said,
            Ok(None) | Err(_) => match instead {
                Some(instead) => {
                    let others = timeout(SILENCE_MAX, self.ask(&instead, &digest, next - 1)).await;
                    let Said { answer, mut others } = others.ok().flatten().unwrap_or(Said::NOTHING);
                    others.extend((answer != Answer::Nothing).then_some(instead.name));
                    Said { answer: Answer::Nothing, others }
                }
                None => Said::NOTHING,
            },
        };
        let others = self.found(&digest, said.others);
        self.heard(&digest, &to, said.answer).await;
        join_all(others.iter().map(async |other| {
            let said = timeout(SILENCE_MAX, self.ask(other, &digest, 0)).await;
            self.heard(&digest, other, said.ok().flatten().map_or(Answer::Nothing, |said| said.answer)).await;
        }))
        .await;
    }

    /// Members of these names, from whom an answer is waited for now.
    fn found(&self, digest: &Digest, names: Vec<Name>) -> Vec<Member> {
        if names.is_empty() {
            return Vec::new();
        }
        let mut members = self.0.mesh.members();
        members.retain(|member| names.contains(&member.name));
        self.with(digest, |swarm, _| members.retain(|member| swarm.asks(&member.name)));
        members
    }

    async fn heard(&self, digest: &Digest, member: &Member, answer: Answer) {
        self.with(digest, |swarm, now| swarm.answered(member, answer, now));
        if answer == Answer::Whole && member.name == self.0.mesh.me().name {
            self.learn(digest.clone()).await;
        }
    }

    /// `None` if it cannot be asked.
    async fn ask(&self, member: &Member, digest: &Digest, next: usize) -> Option<Said> {
        if member.name == self.0.mesh.me().name {
            let answer = if self.0.store.holds(digest) { Answer::Whole } else { Answer::Nothing };
            return Some(Said { answer, others: self.others(digest, next).await });
        }
        self.ask_as(member, digest, next, false).await
    }

    async fn ask_as(&self, member: &Member, digest: &Digest, next: usize, passed_on: bool) -> Option<Said> {
        let channel = self.0.mesh.control(member).await.ok()?;
        let next = u32::try_from(next.min(NEXT_MAX)).expect("a small limit");
        let request = wire::HoldsRequest { digest: digest.to_string(), next, passed_on };
        let mut response = SwarmClient::new(channel).holds(request).await.ok()?.into_inner();
        let answer = match response.answer() {
            WireAnswer::Whole => Answer::Whole,
            WireAnswer::Pulling => Answer::Pulling,
            WireAnswer::Nothing => Answer::Nothing,
        };
        response.others.truncate(OTHERS_MAX);
        Some(Said { answer, others: response.others })
    }

    /// Those of the `next` members after this node who say that they have something of a blob. Nobody, if too many ask.
    pub async fn others(&self, digest: &Digest, next: usize) -> Vec<Name> {
        if next == 0 {
            return Vec::new();
        }
        let Ok(_permit) = self.0.relays.try_acquire() else { return Vec::new() };
        let mut after = self.0.mesh.ring();
        after.remove(0);
        after.truncate(next.min(WATCHED));
        let last = after.len().saturating_sub(1);
        let asking = after.iter().enumerate().map(async |(place, member)| {
            let beyond = if place == last { next.saturating_sub(WATCHED) } else { 0 };
            let hops = u32::try_from(1 + beyond.div_ceil(WATCHED)).expect("few");
            let said = timeout(HOP_MAX * hops, self.ask_as(member, digest, beyond, true)).await;
            let Said { answer, mut others } = said.ok().flatten().unwrap_or(Said::NOTHING);
            others.extend((answer != Answer::Nothing).then(|| member.name.clone()));
            others
        });
        let mut others = join_all(asking).await.concat();
        others.truncate(OTHERS_MAX);
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Role;

    fn ring(count: usize) -> Vec<Member> {
        let member = |number| Member {
            name: format!("n{number}"),
            address: "127.0.0.1:1".to_owned(),
            zone: None,
            generation: 1,
            role: Role::Peer,
        };
        (0..count).map(member).collect()
    }

    #[test]
    fn everybody_is_asked_by_somebody() {
        for (count, asked) in [(2, 1), (128, 127), (129, 65), (1000, 125), (2048, 128), (10_000, 127)] {
            let ring = ring(count);
            // The puller is there already, wherever it stands.
            for puller in [&ring[0], &ring[1]] {
                let questions = questions(&ring, &puller.name, 128);
                assert_eq!(questions.len(), asked, "{count} members");
                let reached: usize = questions.iter().map(|question| 1 + question.next).sum();
                let is_passed_on_to = count > 128 && *puller == ring[1];
                assert_eq!(reached, count - 1 + usize::from(is_passed_on_to));
                assert!(questions.iter().all(|question| question.to != *puller));
            }
        }
    }
}
