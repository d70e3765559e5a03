//! Who has a blob? Everybody is asked when a swarm begins.
//!
//! ```text
//!   up to 128 members:   tracker ──▶ each
//!   beyond:              tracker ──▶ 96, the heads, evenly spread over the ring of the members
//!                                      └─▶ those between a head and the next one
//! ```
//! A large mesh's members keep connections to those that come after them in the ring, so that the question goes there
//! without a handshake; the last of them goes on with it. Who is said to have the blob is asked by the tracker itself:
//! a member speaks for itself only. Where the last of a row is gone, or there are thousands and many of them are slow,
//! some may not be asked: that costs a read of the origin.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    message::Name,
    tracker::{Answer, SILENCE_MAX},
    trackers::Trackers,
};
use crate::{
    mesh::{Member, Mesh, Role, WATCHED, is_name},
    oci::Digest,
    wire::mesh::{self as wire, holds_response::Answer as WireAnswer, swarm_client::SwarmClient},
};

/// Members that go on with a question, one after the other: as many as the largest mesh needs between two heads.
pub const HOPS_MAX: usize = 12;
/// Names in an answer: as many sources as a pull has use for at first.
const OTHERS_MAX: usize = 16;
/// An answer with so many names at their longest.
const ANSWER_LEN_MAX: usize = 8 * 1024;
/// A neighbour that has not answered by then is done without.
const HOP_MAX: Duration = Duration::from_millis(400);
/// And what it is to hear from those after it may take so much longer, each time that it is gone on with: with all of
/// them a head's own answer is in time.
const EACH_HOP_MORE: Duration = Duration::from_millis(80);
/// Whoever asks waits so long for its turn to be gone on with.
const RELAY_WAIT: Duration = Duration::from_millis(100);
/// A head that has not answered by then is asked no more, and the one after it is: within the time for which answers
/// count.
const HEAD_MAX: Duration = Duration::from_millis(1500);
/// Questions that a node goes on with at a time.
pub(super) const RELAYS_MAX: usize = 64;

/// A member that a tracker asks, and those that it is to ask.
struct Question {
    to: Member,
    /// The first of those, who is asked in its place if it is not there.
    instead: Option<Member>,
    /// The next head: those before it.
    until: Name,
    hops: usize,
}

/// What a member says of itself, and of whom it has heard that they have the blob.
struct Said {
    answer: Answer,
    others: Vec<Name>,
}

/// Whom to ask of `ring`, so that everybody but `puller` is asked by somebody: each of `asked_max` members, and of more
/// some three quarters as many, since connections to others are to be kept as well.
fn questions(ring: &[&Member], puller: &str, asked_max: usize) -> Vec<Question> {
    if ring.len() <= asked_max {
        let others = ring.iter().filter(|member| member.name != puller);
        let alone = |to: &&Member| Question { to: (*to).clone(), instead: None, until: Name::new(), hops: 0 };
        return others.map(alone).collect();
    }
    let each = ring.len().div_ceil((asked_max * 3 / 4).max(1));
    // One more, for those that not everybody has heard of.
    let hops = (each.div_ceil(WATCHED) + 1).min(HOPS_MAX);
    let heads = (0..ring.len()).step_by(each);
    let of = |head: usize| {
        let part = &ring[head..ring.len().min(head + each)];
        let until = ring[(head + part.len()) % ring.len()].name.clone();
        let part = if part[0].name == puller { &part[1..] } else { part };
        let (to, after) = part.split_first()?;
        let instead = after.first().map(|member| (*member).clone());
        Some(Question { to: (*to).clone(), instead, until, hops })
    };
    heads.filter_map(of).collect()
}

/// Those of the `ring` after this node, the first on it, and before `until`: at most as many as it keeps connections to,
/// and whether there are more.
fn before<'a>(ring: &[&'a Member], until: &str) -> (Vec<&'a Member>, bool) {
    let Some((me, after)) = ring.split_first() else { return (Vec::new(), false) };
    // Its own name is all the way round.
    let end = Mesh::distance(&me.name, until).wrapping_sub(1);
    let between =
        after.iter().take_while(|member| Mesh::distance(&me.name, &member.name).wrapping_sub(1) < end);
    let mut first: Vec<&Member> = between.take(WATCHED + 1).copied().collect();
    let is_more = first.len() > WATCHED;
    first.truncate(WATCHED);
    (first, is_more)
}

fn request(digest: &Digest, until: &str, hops: usize) -> wire::HoldsRequest {
    wire::HoldsRequest {
        digest: digest.to_string(),
        until: until.to_owned(),
        hops: u32::try_from(hops).expect("a small limit"),
        passed_on: false,
    }
}

impl Trackers {
    /// Asks everybody but `puller` what they hold of a blob, whose swarm begins here; who is asked by this node itself.
    pub(super) fn poll(&self, digest: &Digest, puller: &str) -> Vec<Name> {
        let questions = self.0.mesh.on_ring(|ring| questions(ring, puller, self.0.asked_max));
        let names = questions.iter().map(|question| question.to.name.clone()).collect();
        for question in questions {
            let (trackers, digest, stop) = (self.clone(), digest.clone(), self.0.stop.clone());
            self.0.tasks.spawn(async move {
                stop.run_until_cancelled(Box::pin(trackers.ask_about(&digest, question))).await;
            });
        }
        names
    }

    async fn ask_about(&self, digest: &Digest, question: Question) {
        let Question { to, instead, until, hops } = question;
        let limit = if hops == 0 { SILENCE_MAX } else { HEAD_MAX };
        let asked = async |member: &Member| {
            let is_silent = self.0.mesh.is_silent(member);
            let asking = timeout(limit, self.ask(member, digest, &until, hops));
            if is_silent { None } else { asking.await.ok().flatten() }
        };
        let (mut answer, mut others) = (Answer::Nothing, Vec::new());
        match (asked(&to).await, &instead) {
            (Some(said), _) => (answer, others) = (said.answer, said.others),
            (None, Some(instead)) => {
                // It may only have waited for others too long.
                let alone = timeout(SILENCE_MAX, self.ask(&to, digest, "", 0));
                let (alone, said) = tokio::join!(alone, asked(instead));
                answer = alone.ok().flatten().map_or(answer, |alone| alone.answer);
                if let Some(said) = said {
                    others.extend((said.answer == Answer::Whole).then(|| instead.name.clone()));
                    others.extend(said.others);
                }
            }
            (None, None) => {}
        }
        let others = self.found(digest, &others);
        self.heard(digest, &to, answer).await;
        join_all(others.iter().map(async |other| {
            let said = timeout(SILENCE_MAX, self.ask(other, digest, "", 0)).await.ok().flatten();
            self.heard(digest, other, said.map_or(Answer::Nothing, |said| said.answer)).await;
        }))
        .await;
    }

    /// Members of these names, from whom an answer is waited for now.
    fn found(&self, digest: &Digest, names: &[Name]) -> Vec<Member> {
        let mut members: Vec<Member> = names.iter().filter_map(|name| self.0.mesh.member(name)).collect();
        let mut is_tracked = false;
        self.with(digest, |swarm, _| {
            is_tracked = true;
            // One liar spoils its own answer only: the first of each is asked whatever others have said.
            let mut is_first = true;
            members.retain(|member| swarm.asks(&member.name, std::mem::take(&mut is_first)));
        });
        if is_tracked { members } else { Vec::new() }
    }

    async fn heard(&self, digest: &Digest, member: &Member, answer: Answer) {
        let answer = if self.is_banned(member) { Answer::Nothing } else { answer };
        self.with(digest, |swarm, now| swarm.answered(member, answer, now));
        if answer == Answer::Whole && member.name == self.0.mesh.me().name {
            self.learn(digest.clone()).await;
        }
    }

    /// `None` if it cannot be asked.
    async fn ask(&self, member: &Member, digest: &Digest, until: &str, hops: usize) -> Option<Said> {
        if member.name == self.0.mesh.me().name {
            let answer = if self.0.store.holds(digest) { Answer::Whole } else { Answer::Nothing };
            return Some(Said { answer, others: self.others(digest, until, hops).await });
        }
        self.ask_there(member, &request(digest, until, hops)).await
    }

    async fn ask_there(&self, member: &Member, request: &wire::HoldsRequest) -> Option<Said> {
        let channel = self.0.mesh.control(member).await.ok()?;
        let mut client = SwarmClient::new(channel).max_decoding_message_size(ANSWER_LEN_MAX);
        let mut response = client.holds(request.clone()).await.ok()?.into_inner();
        let answer = match response.answer() {
            WireAnswer::Whole => Answer::Whole,
            WireAnswer::Pulling => Answer::Pulling,
            WireAnswer::Nothing => Answer::Nothing,
        };
        response.others.retain(|name| is_name(name));
        response.others.truncate(if request.hops == 0 { 0 } else { OTHERS_MAX });
        Some(Said { answer, others: response.others })
    }

    /// Those between this node and `until` who say that they have the blob, or are said to by the last of those that
    /// this node asks. Nobody, if too many ask.
    pub async fn others(&self, digest: &Digest, until: &str, hops: usize) -> Vec<Name> {
        if hops == 0 {
            return Vec::new();
        }
        let Ok(Ok(_permit)) = timeout(RELAY_WAIT, self.0.relays.acquire()).await else { return Vec::new() };
        let (next, is_more) = self.0.mesh.on_ring(|ring| {
            let (next, is_more) = before(ring, until);
            (next.into_iter().cloned().collect::<Vec<Member>>(), is_more)
        });
        let answering: Vec<&Member> = next.iter().filter(|member| !self.0.mesh.is_silent(member)).collect();
        let passed_on = |until, hops| wire::HoldsRequest { passed_on: true, ..request(digest, until, hops) };
        let plain = passed_on("", 0);
        let giving = answering.iter().filter(|member| member.role != Role::Leech);
        let near = join_all(giving.map(async |member| {
            let said = timeout(HOP_MAX, self.ask_there(member, &plain)).await.ok().flatten();
            said.filter(|said| said.answer == Answer::Whole).map(|_| member.name.clone())
        }));
        let far = async {
            // One whose connection breaks is replaced by the one before it.
            for last in answering.iter().rev().filter(|_| is_more && hops > 1).take(2) {
                if let Some(said) = self.ask_there(last, &passed_on(until, hops - 1)).await {
                    return said.others;
                }
            }
            Vec::new()
        };
        let patience = HOP_MAX + EACH_HOP_MORE * u32::try_from(hops).expect("a small limit");
        let (near, far) = tokio::join!(near, timeout(patience, far));
        let mut others: Vec<Name> = near.into_iter().flatten().chain(far.unwrap_or_default()).collect();
        others.truncate(OTHERS_MAX);
        others
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ASKED_MAX: usize = 128;

    /// Members in the order of the ring, `first` before all.
    fn ring_of<'a>(members: &'a [Member], first: &'a Member) -> Vec<&'a Member> {
        let others = members.iter().filter(|member| member.name != first.name);
        let mut ring: Vec<&Member> = [first].into_iter().chain(others).collect();
        ring.sort_by_cached_key(|member| Mesh::distance(&first.name, &member.name));
        ring
    }

    /// The same ring as `first` sees it, whether it is on it or not.
    fn turned<'a>(ring: &[&'a Member], first: &'a Member) -> Vec<&'a Member> {
        let place = |member: &&Member| Mesh::distance(&ring[0].name, &member.name);
        let at = ring.partition_point(|member| place(member) < place(&first));
        let after = ring[at..].iter().chain(&ring[..at]).filter(|member| member.name != first.name);
        [first].into_iter().chain(after.copied()).collect()
    }

    fn members(count: usize) -> Vec<Member> {
        let member = |number| Member {
            name: format!("n{number}"),
            address: "127.0.0.1:1".to_owned(),
            zone: None,
            generation: 1,
            role: Role::Peer,
        };
        (0..count).map(member).collect()
    }

    /// Who hears the question if `knows` is the ring of those that each of the others knows of.
    fn asked<'a>(tracker: &[&'a Member], puller: &str, knows: &[&'a Member]) -> BTreeSet<&'a str> {
        let mut asked = BTreeSet::new();
        let on_ring = |name: &str| *tracker.iter().chain(knows).find(|member| member.name == name).unwrap();
        for question in questions(tracker, puller, ASKED_MAX) {
            let (mut at, mut hops) = (on_ring(&question.to.name), question.hops);
            asked.insert(&*at.name);
            while hops > 0 {
                let (next, is_more) = before(&turned(knows, at), &question.until);
                asked.extend(next.iter().map(|member| &*member.name));
                let Some(last) = next.last().filter(|_| is_more) else { break };
                at = last;
                hops -= 1;
            }
        }
        asked
    }

    #[test]
    fn everybody_is_asked_wherever_tracker_and_puller_stand() {
        for count in [1, 2, 128, 129, 1000, 10_000] {
            let members = members(count);
            let ring = ring_of(&members, &members[0]);
            let heads = questions(&ring, "", ASKED_MAX).len();
            assert!(heads <= if count > ASKED_MAX { 96 } else { count }, "{heads} of {count}");
            for puller in [0, count / 2, count - 1].map(|place| &*ring[place].name) {
                let mut asked = asked(&ring, puller, &ring);
                asked.insert(puller);
                assert_eq!(asked.len(), count);
                assert!(questions(&ring, puller, ASKED_MAX).iter().all(|head| head.to.name != puller));
            }
        }
    }

    #[test]
    fn whom_the_tracker_has_not_heard_of_is_asked_as_well() {
        let members = members(1100);
        let (all, some) = (ring_of(&members, &members[0]), ring_of(&members[..1000], &members[0]));
        assert_eq!(asked(&some, "n0", &all).len(), members.len() - 1);
        // And what the others have not heard of yet costs nobody else the question.
        let asked = asked(&all, "n0", &some);
        assert!(members[1..1000].iter().all(|member| asked.contains(&*member.name)));
    }
}
