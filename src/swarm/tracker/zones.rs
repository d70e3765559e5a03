//! Zones: each imports a piece once, by one of its members, and lives from itself otherwise.
//!
//! What is *importable* in a zone is held elsewhere and by nobody there. It is leased in runs to members of the
//! zone, as runs of the origin are; only a lease lets a pull ask members of other zones. A swarm in one zone has
//! nothing to import.

use std::{collections::BTreeSet, time::Instant};

use super::{Puller, STALL_KEPT, Swarm, feed::Feed};
use crate::swarm::message::{Event, Handle, Run};

/// Runs that a zone imports at a time, for all its members: enough to fill a link from several members over there.
const IMPORTS_MAX: usize = 4;
/// Bytes of the longest import: what its loss costs at most.
const RUN_BYTES_MAX: u64 = 16 << 20;
/// Every importer gets about this many leases, so that the last ones end together.
const LEASES_EACH: u32 = 8;

/// Zones of one swarm; members of more of them count as members that state none. Each costs four bytes a piece, and a
/// cluster has a few.
const ZONES_MAX: usize = 64;

/// A zone's number in this swarm.
pub(super) type ZoneId = usize;

pub(super) struct Zone {
    /// The name; empty for members that state none.
    name: String,
    /// One without members is the next new one's.
    members: u32,
    /// By piece: members here that hold it.
    holders: Vec<u32>,
    importable: BTreeSet<u32>,
    feed: Feed,
}

impl Swarm {
    /// The zone called so; new ones lack what others hold.
    pub(super) fn zone_of(&mut self, name: Option<&str>) -> ZoneId {
        let name = name.unwrap_or_default();
        if let Some(known) = self.zones.iter().position(|zone| zone.name == name) {
            return known;
        }
        let empty = self.zones.iter().position(|zone| zone.members == 0);
        if empty.is_none() && self.zones.len() >= ZONES_MAX && !name.is_empty() {
            return self.zone_of(None);
        }
        let held = (0..).zip(&self.pieces).filter(|(_, piece)| piece.holders > 0);
        let zone = Zone {
            name: name.to_owned(),
            members: 0,
            holders: vec![0; self.pieces.len()],
            importable: held.map(|(index, _)| index).collect(),
            feed: Feed::default(),
        };
        if let Some(empty) = empty {
            self.zones[empty] = zone;
            return empty;
        }
        self.zones.push(zone);
        self.zones.len() - 1
    }

    pub(super) fn zone_grows(&mut self, zone: ZoneId) {
        self.zones[zone].members += 1;
    }

    pub(super) fn zone_shrinks(&mut self, zone: ZoneId) {
        self.zones[zone].members -= 1;
    }

    /// A member of `zone` holds the piece from now on.
    pub(super) fn zone_gains(&mut self, zone: ZoneId, index: u32) {
        let is_first = self.pieces[index as usize].holders == 1;
        let here = &mut self.zones[zone];
        here.holders[index as usize] += 1;
        here.importable.remove(&index);
        if is_first {
            for (_, other) in self.zones.iter_mut().enumerate().filter(|(id, _)| *id != zone) {
                other.importable.insert(index);
            }
        }
    }

    /// One member of `zone` less holds the piece.
    pub(super) fn zone_loses(&mut self, zone: ZoneId, index: u32) {
        let is_gone = self.pieces[index as usize].holders == 0;
        let here = &mut self.zones[zone];
        here.holders[index as usize] -= 1;
        if is_gone {
            for zone in &mut self.zones {
                zone.importable.remove(&index);
            }
        } else if here.holders[index as usize] == 0 {
            here.importable.insert(index);
        }
    }

    /// Bytes of the piece came to an importer, if only a part of it.
    pub(super) fn import_progress(&mut self, importer: Handle, index: u32, now: Instant) {
        if let Some(puller) = self.members.get(&importer) {
            let is_here = puller.have.contains(index);
            self.zones[puller.zone].feed.progress(importer, index, is_here, now);
        }
    }

    /// The member leaves: others may import what it was to.
    pub(super) fn release_imports(&mut self, importer: Handle) {
        for zone in &mut self.zones {
            zone.feed.release(|lease| lease.reader == importer);
        }
    }

    /// Imports that are done end; one that stalls goes to another member of the zone.
    pub(super) fn end_imports(&mut self, now: Instant) {
        for id in 0..self.zones.len() {
            let Zone { feed, importable, .. } = &mut self.zones[id];
            let over = feed.release(|lease| !lease.run.clone().any(|index| importable.contains(&index)));
            over.iter().for_each(|lease| feed.measure(lease, now));
            let stalled = feed.leases().iter().find(|lease| lease.has_stalled(now));
            let Some((importer, run)) = stalled.map(|lease| (lease.reader, lease.run.clone())) else {
                continue;
            };
            if self.importers(id).any(|(handle, _)| handle != importer) {
                self.zones[id].feed.release(|lease| lease.run == run);
                self.puller(importer).last_stall = Some(now);
                self.tell(importer, Event::ImportOver(run));
            }
        }
    }

    /// Gives importable runs to members of their zones while there are both.
    pub(super) fn grant_imports(&mut self, now: Instant) {
        if self.zones.len() < 2 {
            return;
        }
        for id in 0..self.zones.len() {
            while let Some(importer) = self.next_importer(id, now) {
                let Some(run) = self.next_import(id) else { break };
                self.zones[id].feed.take(importer, run.clone(), now);
                self.puller(importer).imported += 1;
                self.introduce_holders(importer, &run);
                self.tell(importer, Event::Import(run));
            }
        }
    }

    fn importers(&self, zone: ZoneId) -> impl Iterator<Item = (Handle, &Puller)> {
        let able = move |puller: &Puller| {
            puller.zone == zone && !puller.whole && !puller.passive && puller.to_announce == 0
        };
        self.members.iter().filter(move |(_, puller)| able(puller)).map(|(&handle, puller)| (handle, puller))
    }

    /// Who imports next: whoever has imported least.
    fn next_importer(&self, id: ZoneId, now: Instant) -> Option<Handle> {
        let zone = &self.zones[id];
        // Members that state no zone ask everybody.
        if zone.name.is_empty() || zone.importable.is_empty() {
            return None;
        }
        let busy = zone.feed.busy(|_, index| zone.importable.contains(&index));
        if busy.len() >= IMPORTS_MAX {
            return None;
        }
        let each_max = IMPORTS_MAX.div_ceil(self.importers(id).count().max(1));
        let leases_of = |handle: Handle| busy.iter().filter(|reader| **reader == handle).count();
        let stalled = |p: &Puller| p.last_stall.is_some_and(|at| now.duration_since(at) < STALL_KEPT);
        self.importers(id)
            .filter(|(handle, _)| leases_of(*handle) < each_max)
            .min_by_key(|(handle, puller)| (stalled(puller), leases_of(*handle), puller.imported, *handle))
            .map(|(handle, _)| handle)
    }

    fn next_import(&self, id: ZoneId) -> Option<Run> {
        let zone = &self.zones[id];
        let is_free = |index: &u32| !zone.feed.is_leased(*index);
        let start = zone.importable.iter().copied().find(is_free)?;
        let able = u32::try_from(self.importers(id).count().clamp(1, IMPORTS_MAX)).expect("clamped");
        let most = u32::try_from(RUN_BYTES_MAX / self.layout.piece_len()).expect("a few pieces");
        let len = zone.feed.run_len().min(self.layout.count() / (able * LEASES_EACH)).clamp(1, most);
        let fits = |index: &u32| zone.importable.contains(index) && is_free(index);
        let end = (start..start + len).take_while(fits).last()? + 1;
        Some(start..end)
    }
}
