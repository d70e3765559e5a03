//! A mesh of more members than a tracker asks when a swarm begins.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_has_is_found_although_the_tracker_does_not_ask_it() {
    let len = (3 << 20) + 1;
    let settings = pull::Settings { polled_max: 1, ..pull::Settings::default() };
    let crowd = Crowd::with(4, len, true, settings).await;
    let rank: Vec<String> =
        crowd.nodes[0].mesh.rank(&crowd.want.digest).into_iter().map(|member| member.name).collect();
    let number = |place: usize| {
        crowd.nodes.iter().position(|node| node.mesh.me().name == rank[place]).expect("it is in the mesh")
    };
    let (tracker, holder, puller) = (number(0), number(2), number(3));
    crowd.containerd_has(holder, &crowd.registry.blob);
    let told = async {
        while !crowd.nodes[tracker].pulls.trackers().knows_holder(&crowd.want.digest, &rank[2]) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GUARD, told).await.expect("the tracker is told");
    assert_eq!(crowd.pulled_by(puller).await.peer, len as u64);
    assert_eq!(crowd.registry.bytes_sent(), 0);
    crowd.down().await;
}
