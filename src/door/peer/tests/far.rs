//! What members hold whom the tracker does not ask itself.

use super::*;

/// A tracker that asks one member, who asks the sixteen after it, the last of whom asks the rest.
const MEMBERS: usize = 20;
const ASKED: usize = 1;
const LEN: usize = 300_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_of_many_has_is_found_through_those_in_between() {
    let settings = pull::Settings { asked_max: ASKED, ..pull::Settings::default() };
    let crowd = Crowd::with(MEMBERS, 1, true, settings).await;
    for (number, holder) in crowd.nodes.iter().enumerate() {
        let bytes: Bytes = (0..LEN).map(|at| (at % (number + 2)) as u8).collect();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let file = holder.dir.path().join("held");
        std::fs::write(&file, &bytes).unwrap();
        holder.store.adopt(&digest, LEN as u64, &file).unwrap();
        let want = Want { digest, len: LEN as u64, origins: Vec::new(), ..crowd.want.clone() };
        let puller = &crowd.nodes[(number + 1) % MEMBERS];
        // On a busy machine an answer may come too late: then it is there the next time.
        let found = async {
            let mut from_peers = 0;
            loop {
                let pull = puller.pulls.start(want.clone());
                let ended = pull.proven().await;
                from_peers += pull.status().bytes.peer;
                if ended.is_ok() {
                    break from_peers;
                }
            }
        };
        let from_peers = tokio::time::timeout(GUARD, found).await.expect("it is never found");
        assert_eq!(from_peers, LEN as u64);
    }
    crowd.down().await;
}
