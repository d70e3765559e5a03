//! Which member tracks a digest: rendezvous hashing, the same answer on every node that sees the same
//! members.
//!
//! The weight of a member for a digest is `xxh3_64(raw digest bytes, then the bytes of its name)`, seed 0;
//! the heaviest comes first, and equal weights go by name. This is part of the wire protocol: nodes that
//! rank differently ask different trackers. The vectors below freeze it.

use std::cmp::Reverse;

use xxhash_rust::xxh3::xxh3_64;

use super::{Member, Role};
use crate::oci::Digest;

/// The members that may track `digest`, best first. A leech never may.
pub fn hrw_rank<'a>(digest: &Digest, members: impl IntoIterator<Item = &'a Member>) -> Vec<&'a Member> {
    let mut ranked: Vec<(u64, &Member)> = members
        .into_iter()
        .filter(|member| member.role != Role::Leech)
        .map(|member| (weight(digest, &member.name), member))
        .collect();
    ranked.sort_by(|(a_weight, a), (b_weight, b)| {
        Reverse(a_weight).cmp(&Reverse(b_weight)).then_with(|| a.name.cmp(&b.name))
    });
    ranked.into_iter().map(|(_, member)| member).collect()
}

fn weight(digest: &Digest, name: &str) -> u64 {
    let mut input = Vec::with_capacity(digest.as_bytes().len() + name.len());
    input.extend_from_slice(digest.as_bytes());
    input.extend_from_slice(name.as_bytes());
    xxh3_64(&input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn member(name: &str, role: Role) -> Member {
        Member { name: name.into(), address: format!("{name}:7442"), zone: None, generation: 1, role }
    }

    #[test]
    fn the_order_is_frozen() {
        let members: Vec<Member> =
            ["node1", "node2", "node3", "node4"].map(|name| member(name, Role::Peer)).into();
        let order = |text: &str| {
            let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
            hrw_rank(&digest, &members).iter().map(|m| m.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(""), "node1 node2 node4 node3");
        assert_eq!(order("a"), "node2 node1 node3 node4");
        assert_eq!(order("b"), "node3 node4 node2 node1");
        assert_eq!(order("c"), "node1 node3 node4 node2");
        // The published value of the hash for no bytes at all: it is xxh3 with seed 0.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        let empty = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(
            ["node1", "a.b.example"].map(|name| weight(&empty, name)),
            [0x2f36_8620_8ab0_eba5, 0xd593_d3c6_fbca_42f2]
        );
    }

    #[test]
    fn a_leech_is_never_a_tracker_and_the_listing_order_does_not_matter() {
        let mut members = vec![member("a", Role::Leech), member("b", Role::Seed), member("c", Role::Peer)];
        let digest = Digest::of(Algorithm::Sha512, b"layer");
        let names = |members: &[Member]| {
            hrw_rank(&digest, members).iter().map(|m| m.name.clone()).collect::<Vec<_>>()
        };
        let first = names(&members);
        members.reverse();
        assert_eq!(first, names(&members));
        assert!(first.len() == 2 && !first.contains(&"a".to_owned()));
    }

    #[test]
    fn digests_spread_evenly() {
        let members: Vec<Member> = (0..10).map(|n| member(&format!("node{n}"), Role::Peer)).collect();
        let mut firsts = std::collections::HashMap::<&str, u32>::new();
        for n in 0..10_000u32 {
            let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
            *firsts.entry(&hrw_rank(&digest, &members)[0].name).or_default() += 1;
        }
        // 1000 expected; a standard deviation is 30.
        assert!(firsts.values().all(|&count| (850..1150).contains(&count)), "{firsts:?}");
    }
}
