//! Blobs that fit into the answer to a join.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_comes_from_its_tracker_when_who_proved_it_is_gone() {
    let crowd = Crowd::new(3, 100_000, true).await;
    let tracker = crowd.nodes[0].mesh.rank(&crowd.want.digest)[0].name.clone();
    let (trackers, others): (Vec<&Node>, Vec<&Node>) =
        crowd.nodes.iter().partition(|node| node.mesh.me().name == tracker);
    let (first, late) = (others[0], others[1]);

    let pull = first.pulls.start(crowd.want.clone());
    tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    let learnt = async {
        while !trackers[0].pulls.trackers().has_content(&crowd.want.digest) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GUARD, learnt).await.expect("the tracker learns the blob");
    first.stop.cancel();

    let want = Want { origins: Vec::new(), ..crowd.want.clone() };
    let pull = late.pulls.start(want);
    tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    assert_eq!(pull.status().bytes.peer, 100_000);
    assert_eq!(crowd.registry.bytes_sent(), 100_000);
    assert!(!trackers[0].store.holds(&crowd.want.digest), "a tracker stores nothing");
    crowd.down().await;
}
