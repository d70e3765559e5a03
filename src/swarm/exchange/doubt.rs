//! What to do when bytes, statements and chains contradict each other.
//!
//! Nobody is banned on anybody's word. What the origin, a chain or the tracker contradicts makes its voucher a suspect,
//! who is asked at once what it stated; when the blob is proven, whoever stated other bytes and said so itself is banned.
//! A node may find itself among them: then its registry has misled it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{Action, ChainState, Claim, Exchange, Fetched, Suspect, peers::Peer};
use crate::{
    mesh::Member,
    piece::Statement,
    swarm::message::{Failure, Name, Report, Verdict},
};

impl Exchange {
    /// The chain that `sponsor` sent, or `None` if it sent none that is one; `unfit` are the pieces here that
    /// do not fit it.
    pub fn chain_checked(&mut self, sponsor: &str, unfit: Option<Vec<u32>>, now: Instant) {
        if self.chain != ChainState::Asked {
            return;
        }
        let sponsor = sponsor.to_owned();
        match unfit {
            None => {
                self.chain = ChainState::Unknown;
                self.strike_out(&sponsor);
            }
            Some(unfit) => {
                self.chain = ChainState::Known { sponsor: Some(sponsor) };
                self.unclosed = false;
                for index in unfit {
                    if let Some(claim) = self.held.get(&index).cloned() {
                        self.suspect(index, claim);
                    }
                    self.ask_sponsor.insert(index);
                    self.forget(index);
                    self.actions.push(Action::Tell(Report::Lost { index }));
                }
            }
        }
        self.settle(now);
    }

    /// Every piece is here and the chain that they make does not close.
    pub fn unclosed(&mut self, now: Instant) {
        let from_disk: Vec<u32> =
            self.held.iter().filter(|(_, claim)| claim.voucher.is_empty()).map(|(&index, _)| index).collect();
        let all_mine = self.held.values().all(|claim| claim.voucher == self.setting.me.name);
        if !from_disk.is_empty() {
            // Nobody can be asked about pieces from before a restart: they come again.
            for index in from_disk {
                self.forget(index);
                self.actions.push(Action::Tell(Report::Lost { index }));
            }
        } else if all_mine {
            self.fail("wrong_digest".to_owned());
        } else {
            self.unclosed = true;
            self.actions.push(Action::Tell(Report::Unclosed));
        }
        self.settle(now);
    }

    /// What the audit of this member came to; `None` if it could not be finished.
    pub fn audited(&mut self, found: Option<Verdict>, now: Instant) {
        self.auditing = false;
        match found {
            Some(verdict) => {
                if let Verdict::Differs { index, statement } = verdict {
                    self.contradicted(index, statement);
                }
                self.actions.push(Action::Tell(Report::Verdict(verdict)));
            }
            None => self.not_audited(),
        }
        self.settle(now);
    }

    /// The origin has other bytes for the piece than somebody vouched for.
    fn contradicted(&mut self, index: u32, origin: Statement) {
        let claims = [self.held.get(&index), self.stated[index as usize].as_ref()];
        let claim = claims.into_iter().flatten().find(|claim| claim.statement != origin).cloned();
        if let Some(claim) = claim {
            self.suspect(index, claim);
        }
    }

    fn not_audited(&mut self) {
        let run = 0..self.layout.count();
        let reason = "audit".to_owned();
        self.actions.push(Action::Tell(Report::Returned { run, failure: Failure::Final, reason }));
    }

    /// Vouchers take turns, so that a liar is found after about as many pieces as there are vouchers.
    pub(super) fn audit(&mut self, each: u32) {
        let mut by_voucher: BTreeMap<&Name, Vec<(u32, Statement, Name)>> = BTreeMap::new();
        for (&index, claim) in self.held.iter().filter(|(_, c)| c.voucher != self.setting.me.name) {
            let piece = (index, claim.statement, claim.voucher.clone());
            by_voucher.entry(&claim.voucher).or_default().push(piece);
        }
        let longest = by_voucher.values().map(Vec::len).max().unwrap_or(0).min(each as usize);
        let turn = |nth: usize| by_voucher.values().filter_map(move |pieces| pieces.get(nth)).cloned();
        let order = (0..longest).flat_map(turn).collect();
        self.auditing = true;
        self.actions.push(Action::Audit { order });
    }

    /// One piece of somebody else's, on which an auditor has spoken already.
    pub(super) fn recheck(&mut self, index: u32) {
        let claim = self.stated[index as usize].as_ref();
        match claim.map(|claim| (index, claim.statement, claim.voucher.clone())) {
            Some(piece) => {
                self.auditing = true;
                self.actions.push(Action::Audit { order: vec![piece] });
            }
            None => self.not_audited(),
        }
    }

    /// The origin convicted `voucher`, says the tracker: what it vouched for comes again.
    pub(super) fn drop_vouched(&mut self, voucher: &Name) {
        for index in 0..self.layout.count() {
            let claim = &mut self.stated[index as usize];
            if claim.as_ref().is_some_and(|claim| claim.voucher == *voucher) {
                *claim = None;
                for peer in self.peers.values_mut() {
                    peer.loses(index, &mut self.holders);
                }
            }
            let held = self.held.get(&index).filter(|claim| claim.voucher == *voucher).cloned();
            if let Some(claim) = held {
                self.suspect(index, claim);
                self.forget(index);
            }
        }
        self.unclosed = false;
    }

    fn suspect(&mut self, index: u32, claim: Claim) {
        let voucher = claim.voucher.clone();
        // From the disk: nobody knows any more who brought it.
        if voucher.is_empty() {
            return;
        }
        self.suspects.push(Suspect { index, claim, repeated_by: None });
        if self.questioned.insert(voucher.clone()) {
            self.actions.push(Action::AskStatements { voucher });
        }
    }

    /// What `voucher` says that it stated, by piece; `None` if it says nothing.
    pub fn statements(&mut self, voucher: &str, said: Option<(&Member, &[Statement])>) {
        self.questioned.remove(voucher);
        let Some((by, statements)) = said else { return };
        for suspect in self.suspects.iter_mut().filter(|known| known.claim.voucher == voucher) {
            if statements.get(suspect.index as usize) == Some(&suspect.claim.statement) {
                suspect.repeated_by = Some(by.clone());
            }
        }
        if self.proven {
            self.judge_suspects();
        }
    }

    /// The proof acquits whoever stated what is proven. Those who have not answered yet may still.
    pub(super) fn judge_suspects(&mut self) {
        let held = &self.held;
        self.suspects.retain(|known| {
            held.get(&known.index).is_some_and(|claim| claim.statement != known.claim.statement)
        });
        let mut named = BTreeSet::new();
        for Suspect { index, repeated_by, .. } in
            self.suspects.extract_if(.., |known| known.repeated_by.is_some())
        {
            let Some(member) = repeated_by.filter(|by| named.insert(by.name.clone())) else { continue };
            let misled = member.name == self.setting.me.name;
            self.actions.push(if misled { Action::Misled { index } } else { Action::Ban { member, index } });
        }
    }

    /// A piece that a peer sent failed its check.
    pub(super) fn came_wrong(&mut self, peer: &str, index: u32) {
        let ChainState::Known { sponsor: Some(sponsor) } = &self.chain else { return };
        let reachable = self.peers.get(sponsor).is_some_and(Peer::is_hopeful);
        if peer == sponsor || !reachable {
            self.drop_chain();
        } else {
            self.ask_sponsor.insert(index);
        }
    }

    /// This node has convicted the member: it is not asked again.
    pub fn ban(&mut self, name: &str) {
        self.strike_out(&name.to_owned());
    }

    /// The sponsor could not make its chain true.
    pub(super) fn drop_chain(&mut self) {
        let ChainState::Known { sponsor: Some(sponsor) } = &self.chain else { return };
        let sponsor = sponsor.clone();
        self.chain = ChainState::Unknown;
        self.ask_sponsor.clear();
        self.suspects.clear();
        self.actions.push(Action::DropChain);
        self.strike_out(&sponsor);
        // Whoever was refused by that chain may have been right.
        for peer in self.peers.values_mut().filter(|peer| peer.member.name != sponsor) {
            peer.wrong = 0;
        }
        let vouched: Vec<u32> =
            self.held.iter().filter(|(_, c)| c.voucher == sponsor).map(|(&index, _)| index).collect();
        for index in vouched {
            self.forget(index);
            self.actions.push(Action::Tell(Report::Lost { index }));
        }
    }

    /// A chain is asked for when pieces can be had with nothing else to check them, or ours does not close.
    pub(super) fn seek_chain(&mut self, now: Instant) {
        if self.chain != ChainState::Unknown {
            return;
        }
        let unstated = || self.have.missing().any(|index| self.stated[index as usize].is_none());
        if !self.unclosed && !unstated() {
            return;
        }
        let whole = |peer: &&Peer| peer.whole && peer.is_usable(now);
        let sponsor = self.peers.values().filter(whole).min_by_key(|peer| (peer.failures, peer.requests));
        if let Some(peer) = sponsor.map(|peer| peer.member.clone()) {
            self.chain = ChainState::Asked;
            self.actions.push(Action::FetchChain { peer });
        }
    }

    /// The chain could not be fetched from this peer. Busy is one that still reads a blob that it has offered: it is
    /// asked again, others meanwhile. One without a chain has lost the blob.
    pub fn chain_failed(&mut self, peer: &Member, why: Fetched, now: Instant) {
        if self.chain == ChainState::Asked {
            self.chain = ChainState::Unknown;
            if let Some(peer) = self.peers.get_mut(&peer.name) {
                peer.requests += 1;
            }
            self.peer_answered(&peer.name, 0, why, now);
        }
        self.settle(now);
    }
}
