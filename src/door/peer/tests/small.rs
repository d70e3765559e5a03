//! Blobs that fit into the answer to a join.

use super::*;

const LEN: usize = 100_000;

/// A crowd whose tracker of the blob knows its bytes, from the first of the two others.
async fn learnt(crowd: &Crowd) -> (&Node, &Node, &Node) {
    let tracker = crowd.nodes[0].mesh.rank(&crowd.want.digest)[0].name.clone();
    let (trackers, others): (Vec<&Node>, Vec<&Node>) =
        crowd.nodes.iter().partition(|node| node.mesh.me().name == tracker);
    let pull = others[0].pulls.start(crowd.want.clone());
    tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    let learnt = async {
        while !trackers[0].pulls.trackers().has_content(&crowd.want.digest) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GUARD, learnt).await.expect("the tracker learns the blob");
    (trackers[0], others[0], others[1])
}

/// Pulls what the registry is not asked for again, once.
async fn pull_late(crowd: &Crowd, late: &Node) {
    let want = Want { origins: Vec::new(), ..crowd.want.clone() };
    let pull = late.pulls.start(want);
    tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    assert_eq!(pull.status().bytes.peer, LEN as u64);
    assert_eq!(crowd.registry.bytes_sent(), LEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_comes_from_its_tracker_when_who_proved_it_is_gone() {
    let crowd = Crowd::new(3, LEN, true).await;
    let (tracker, first, late) = learnt(&crowd).await;
    first.stop.cancel();
    pull_late(&crowd, late).await;
    assert!(!tracker.store.holds(&crowd.want.digest), "a tracker stores nothing");
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_tracker_gave_is_not_fetched_from_a_member_as_well() {
    let crowd = Crowd::new(3, LEN, true).await;
    let (tracker, _first, late) = learnt(&crowd).await;
    pull_late(&crowd, late).await;
    // The tracker's own node hears it from itself.
    pull_late(&crowd, tracker).await;
    crowd.down().await;
}
