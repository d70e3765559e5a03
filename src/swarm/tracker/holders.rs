//! Who holds which piece, under whose statement, and who is discredited.

use std::{collections::BTreeSet, time::Instant};

use super::{Puller, REFUSERS, Swarm, zones::ZoneId};
use crate::{
    piece::PieceSet,
    swarm::message::{Event, Handle, Held, Name},
};

impl Swarm {
    pub(super) fn remove(&mut self, handle: Handle) {
        let Some(puller) = self.members.remove(&handle) else { return };
        self.polled.remove(&puller.member.name);
        let _runs = self.release_all(handle);
        self.release_imports(handle);
        if !puller.silent {
            puller.have.iter().for_each(|index| self.less_one_holder(puller.zone, index));
        }
        self.zone_shrinks(puller.zone);
        self.audit.left(handle);
        self.forget_member(handle, &puller.hears, &puller.heard_by);
    }

    fn less_one_holder(&mut self, zone: ZoneId, index: u32) {
        let piece = &mut self.pieces[index as usize];
        piece.holders -= 1;
        if piece.holders == 0 {
            piece.stated = None;
            self.spread(index);
        }
        self.zone_loses(zone, index);
    }

    fn one_more_holder(&mut self, zone: ZoneId, index: u32) {
        self.pieces[index as usize].holders += 1;
        self.spread(index);
        self.zone_gains(zone, index);
    }

    /// The piece is with nobody, or with more than its reader.
    fn spread(&mut self, index: u32) {
        let reader = self.pieces[index as usize].unspread.take();
        if let Some(puller) = reader.and_then(|reader| self.members.get_mut(&reader)) {
            puller.unspread -= 1;
        }
    }

    pub(super) fn held(&mut self, handle: Handle, held: Held, now: Instant) {
        let puller = self.puller(handle);
        puller.to_announce = puller.to_announce.saturating_sub(1);
        if puller.to_announce == 0 {
            let name = puller.member.name.clone();
            self.polled.remove(&name);
        }
        let (name, zone) = {
            let puller = self.puller(handle);
            (puller.member.name.clone(), puller.zone)
        };
        if self.convicted.contains(&held.voucher) {
            return;
        }
        let index = held.index;
        if self.puller(handle).is_leech() {
            self.puller(handle).taken.insert(index);
            return self.progress(handle, index, now);
        }
        let piece = &mut self.pieces[index as usize];
        match &piece.stated {
            // The first statement stands; whoever holds other bytes is no holder of this piece.
            Some((statement, _)) if *statement != held.statement => return,
            Some(_) => {}
            None => {
                piece.stated = Some((held.statement, held.voucher.clone()));
                self.tell_stated(held.clone());
            }
        }
        if self.puller(handle).have.insert(index) {
            self.one_more_holder(zone, index);
            if held.voucher == name {
                let is_new = self.pieces[index as usize].holders == 1;
                let puller = self.puller(handle);
                puller.read += 1;
                puller.unspread += u32::from(is_new);
                self.pieces[index as usize].unspread = is_new.then_some(handle);
            }
            self.tell_arrived(handle, index);
        }
        self.progress(handle, index, now);
        self.import_progress(handle, index, now);
    }

    pub(super) fn whole(&mut self, handle: Handle) {
        let count = self.layout.count();
        let puller = self.puller(handle);
        if puller.whole {
            return;
        }
        puller.whole = true;
        puller.unclosed = false;
        puller.to_announce = 0;
        let (name, zone, is_leech) = (puller.member.name.clone(), puller.zone, puller.is_leech());
        self.polled.remove(&name);
        if is_leech {
            return;
        }
        let puller = self.puller(handle);
        let missing: Vec<u32> = puller.have.missing().collect();
        puller.have = PieceSet::full(count);
        for index in missing {
            self.one_more_holder(zone, index);
        }
        self.fresh.remove(&handle);
        self.tell_hearers(handle, &Event::Whole { handle });
    }

    pub(super) fn lost(&mut self, handle: Handle, index: u32) {
        let puller = self.puller(handle);
        puller.whole = false;
        puller.taken.remove(&index);
        let zone = puller.zone;
        if puller.silent {
            return self.discredit(handle);
        }
        if puller.have.remove(index) {
            self.less_one_holder(zone, index);
            self.tell_fresh();
            self.tell_hearers(handle, &Event::PieceLost { handle, index });
        }
    }

    /// `by` got wrong bytes from `handle` three times.
    pub(super) fn refused(&mut self, by: Handle, handle: Handle) {
        let Some(puller) = self.members.get_mut(&handle).filter(|puller| !puller.discredited) else { return };
        puller.refused_by.insert(by);
        self.judge(handle);
    }

    /// `by` got nothing from `handle`, three times, or heard that it has the blob no more.
    pub(super) fn unheard(&mut self, by: Handle, handle: Handle) {
        let Some(puller) = self.members.get_mut(&handle).filter(|puller| !puller.discredited) else { return };
        puller.unheard_by.insert(by);
        self.judge(handle);
    }

    /// Of a crowd that has become small one word counts that did not before.
    pub(super) fn reconsider_refused(&mut self) {
        let accused = |p: &Puller| !p.refused_by.is_empty() || !(p.silent || p.unheard_by.is_empty());
        let accused = self.members.iter().filter(|(_, puller)| accused(puller));
        for handle in accused.map(|(&handle, _)| handle).collect::<Vec<_>>() {
            self.judge(handle);
        }
    }

    fn judge(&mut self, handle: Handle) {
        let counts = |puller: &Puller| !puller.whole && !puller.discredited;
        let unfinished = |other: &Handle| *other != handle && self.members.get(other).is_some_and(counts);
        let needed = REFUSERS.min(self.members.keys().filter(|other| unfinished(other)).count());
        let puller = &self.members[&handle];
        // Whoever is done or gone needs it no more.
        let refusers = puller.refused_by.iter().filter(|by| unfinished(by)).count();
        let both = puller.refused_by.union(&puller.unheard_by).filter(|by| unfinished(by)).count();
        let name = &puller.member.name;
        if refusers > 0 && refusers >= needed {
            tracing::warn!(member = %name, "swarm: discredited, it served wrong bytes");
            self.discredit(handle);
        } else if both > 0 && both >= needed && !puller.silent {
            tracing::warn!(member = %name, "swarm: what it has counts no more, it gives nothing");
            match puller.whole {
                true => self.silence(handle),
                false => self.discredit(handle),
            }
        }
    }

    /// What it has is read from the origin, if that gives it. It is no liar: whoever needs it may still ask it.
    fn silence(&mut self, handle: Handle) {
        let puller = self.puller(handle);
        puller.silent = true;
        let (zone, had): (ZoneId, Vec<u32>) = (puller.zone, puller.have.iter().collect());
        had.into_iter().for_each(|index| self.less_one_holder(zone, index));
    }

    /// What it has and says counts no more. What it vouched for and others hold stays, unless the origin convicted it.
    pub(super) fn discredit(&mut self, handle: Handle) {
        let Some(puller) = self.members.get(&handle).filter(|puller| !puller.discredited) else { return };
        let name = puller.member.name.clone();
        self.discredited.insert(name.clone());
        if puller.passive {
            return self.remove(handle);
        }
        self.audit.accuser_is_out(&name);
        self.release_all(handle).into_iter().for_each(|run| self.tell(handle, Event::Revoke(run)));
        self.release_imports(handle);
        self.audit.left(handle);
        let everywhere = self.zone_of(None);
        let count = self.layout.count();
        let puller = self.puller(handle);
        puller.discredited = true;
        puller.unclosed = false;
        puller.to_announce = 0;
        puller.refused_by.clear();
        puller.unheard_by.clear();
        let was_at = std::mem::replace(&mut puller.zone, everywhere);
        let had = std::mem::replace(&mut puller.have, PieceSet::empty(count));
        puller.taken.extend(had.iter());
        let heard_by = std::mem::take(&mut puller.heard_by);
        if !std::mem::take(&mut puller.silent) {
            had.iter().for_each(|index| self.less_one_holder(was_at, index));
        }
        self.zone_shrinks(was_at);
        self.zone_grows(everywhere);
        self.forget_member(handle, &BTreeSet::new(), &heard_by);
        self.tell(handle, Event::Discredited);
    }

    /// Everything that `voucher` stated is forgotten, whoever holds it, except by those who proved the blob.
    pub(super) fn drop_vouched(&mut self, voucher: &Name) {
        self.tell_fresh();
        for index in 0..self.layout.count() {
            let stated = &self.pieces[index as usize].stated;
            if stated.as_ref().is_none_or(|(_, by)| by != voucher) {
                continue;
            }
            self.pieces[index as usize].stated = None;
            self.spread(index);
            let losers = self.members.values_mut().filter(|puller| !puller.whole);
            let lose = |puller: &mut Puller| {
                puller.taken.remove(&index);
                puller.have.remove(index).then_some(puller.zone)
            };
            let losers: Vec<ZoneId> = losers.filter_map(lose).collect();
            losers.into_iter().for_each(|zone| self.less_one_holder(zone, index));
        }
        for puller in self.members.values_mut() {
            puller.unclosed = false;
        }
        self.tell_all(&Event::Dropped { voucher: voucher.clone() });
    }
}
