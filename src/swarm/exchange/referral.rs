//! Who is full names members that it has just fed the piece: they are asked next.

use std::collections::BTreeMap;

use super::{Exchange, peers::Peer};
use crate::swarm::message::{Name, REFERRED_MAX};

/// Pieces for which somebody has been named: more than are asked for at a time.
const PIECES_MAX: usize = 64;

/// By piece, whom to ask for it; each once.
#[derive(Default)]
pub(super) struct Referrals(BTreeMap<u32, Vec<Name>>);

impl Referrals {
    pub(super) fn take(&mut self, index: u32, peer: &Name) -> bool {
        let Some(names) = self.0.get_mut(&index) else { return false };
        let before = names.len();
        names.retain(|name| name != peer);
        let was_named = names.len() < before;
        if names.is_empty() {
            self.0.remove(&index);
        }
        was_named
    }

    pub(super) fn forget(&mut self, index: u32) {
        self.0.remove(&index);
    }
}

impl Exchange {
    /// A peer without a free slot has just sent the piece to these members, if one may believe it.
    pub fn referred(&mut self, index: u32, to: Vec<Name>) {
        let is_known = self.referrals.0.contains_key(&index);
        if index < self.layout.count() && (is_known || self.referrals.0.len() < PIECES_MAX) {
            self.referrals.0.insert(index, to.into_iter().take(REFERRED_MAX).collect());
        }
    }

    /// A piece that somebody has been fed, and who. The tracker may not have told of it yet.
    pub(super) fn by_referral<'a>(&self, usable: &[&'a Peer]) -> Option<(u32, &'a Peer)> {
        self.referrals.0.iter().find_map(|(&index, names)| {
            let is_wanted = self.wanted.contains(index) && self.check_for(index).is_some();
            let may_have = |peer: &&&Peer| {
                is_wanted
                    && !peer.is_far
                    && names.contains(&peer.member.name)
                    && !self.asks_sponsor_for(index)
            };
            usable.iter().find(may_have).map(|peer| (index, *peer))
        })
    }
}
