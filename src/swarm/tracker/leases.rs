//! Who reads which run from the origin: each piece by one reader, a few readers at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    Piece, Puller, STALL_KEPT, Swarm,
    feed::{Feed, Lease},
};
use crate::swarm::message::{Event, Failure, Handle, Run, SMALL_MAX};

/// Readers of the origin at a time, in a whole crowd; half of them after each failure in a row. A connection that
/// reads now and then begins slowly each time (TCP's window after idling), and full queues make that a tenth of a second
/// a round: with two the registry's 100 Mbit/s link carried 60 to 70 % in real crowds of 8, with four 80 to 85 %, with
/// eight, none of which ever idles, 85 to 95 %. In real crowds of 16 on 20 Mbit/s, where each has fewer turns, six
/// carried 85 % and the crowd was done after 1.28 to 1.34 x F/B; ten 96 % and 1.25; twelve the same. So five of eight
/// members, between these two.
const READERS_FEW: usize = 6;
const READERS_MAX: usize = 10;
/// Readers before anything is read, and one more with every piece: six at once have their first pieces all together after
/// six times as long, and meanwhile nobody has anything to pass on. In the simulation of a layer of 96 pieces the
/// makespan of 16 nodes is 1.25 x F/B and not 1.34.
const READERS_FIRST: usize = 2;
/// And not longer than this: two slow ones, or a crowd of leeches whose pieces count for nobody, hold nobody up.
const READERS_FIRST_TIME: Duration = Duration::from_secs(1);
/// Runs that a reader without company has at a time: nobody waits for its first piece, and four connections fill
/// a link that one does not.
const RUNS_ALONE: usize = 4;
/// Bytes of the longest lease: what its loss costs at most.
const RUN_BYTES_MAX: u64 = 32 << 20;
/// Every reader gets about this many leases, and of what is left at the end at most half of its share, so that the last
/// ones end together: in real crowds of 8 on 50 Mbit/s the registry's link carried half of its rate in the last second
/// when they did not.
const LEASES_EACH: u32 = 8;
const LEASES_OF_THE_REST: usize = 2;
/// Readers that are refused for good before the swarm believes it: each may have other credentials.
const REFUSALS_MAX: usize = 8;
/// Failures in a row, of any reader, before the origin counts as gone. Each call retried inside already.
const FAILURES_MAX: u32 = 4;
/// The first pause after a failure; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the swarm remembers that the origin failed: a crowd asks once, the next one asks again.
const FAILED_KEPT: Duration = Duration::from_secs(15);

/// What the swarm knows of the origin.
#[derive(Default)]
pub(super) struct Origin {
    feed: Feed,
    /// It ignores ranges: one reader takes all.
    one_stream: bool,
    refused: BTreeSet<Handle>,
    /// They have so much to read that a small blob has to wait.
    busy: BTreeSet<Handle>,
    failures: u32,
    quiet_until: Option<Instant>,
    reason: Option<String>,
    failed_at: Option<Instant>,
    /// When the first lease was given.
    began_at: Option<Instant>,
}

impl Origin {
    /// Somebody new may know a way in.
    pub(super) fn joined(&mut self, reads_origin: bool) {
        if reads_origin && self.refused.len() < REFUSALS_MAX && self.failures < FAILURES_MAX {
            self.failed_at = None;
        }
    }

    /// The origin serves other bytes than the digest names, or is beyond reach.
    pub(super) fn fail(&mut self, reason: &str, now: Instant) {
        self.reason = Some(reason.to_owned());
        self.failed_at = Some(now);
    }
}

/// How many of so many members read at a time.
fn readers_of(able: usize) -> usize {
    (able * 5 / 8).clamp(READERS_FEW, READERS_MAX)
}

/// Whether the reader of a lease has still to bring the piece.
fn lacks(pieces: &[Piece], members: &BTreeMap<Handle, Puller>, reader: Handle, index: u32) -> bool {
    let has = |puller: &Puller| puller.taken.contains(&index);
    pieces[index as usize].holders == 0 && !members.get(&reader).is_some_and(has)
}

impl Swarm {
    /// A lease of the tracker before this one goes on.
    pub(super) fn resume_lease(&mut self, reader: Handle, run: &Run, now: Instant) {
        let free = run.clone().all(|index| self.is_free(index));
        if free && !self.leaves_it(&self.members[&reader]) {
            self.origin.feed.take(reader, run.clone(), now);
        } else {
            self.tell(reader, Event::Revoke(run.clone()));
        }
    }

    /// Bytes came for the lease of `reader` that contains `index`.
    pub(super) fn progress(&mut self, reader: Handle, index: u32, now: Instant) {
        self.audit.progress(reader, now);
        let is_here = !lacks(&self.pieces, &self.members, reader, index);
        if self.origin.feed.progress(reader, index, is_here, now) {
            self.origin.failures = 0;
        }
    }

    /// The lease of `reader` that contains `index` waits for its turn at the registry.
    pub(super) fn origin_waits(&mut self, reader: Handle, index: u32, now: Instant) {
        self.origin.feed.waits(reader, index, now);
        if self.layout.blob_len() <= SMALL_MAX {
            self.pass_on(reader, now);
        }
    }

    /// A small blob has no turn at the registry to wait for: its reader is busy with others. Whoever has not said so yet
    /// reads it instead, of blobs of other lengths somebody else.
    fn pass_on(&mut self, reader: Handle, now: Instant) {
        self.origin.busy.insert(reader);
        let is_free = |other: &Handle| !self.origin.busy.contains(other) && self.may_read(*other);
        let free: Vec<Handle> = self.members.keys().copied().filter(is_free).collect();
        let chance = usize::try_from(self.layout.blob_len()).unwrap_or_default();
        let Some(&heir) = chance.checked_rem(free.len()).and_then(|at| free.get(at)) else { return };
        for lease in self.origin.feed.release(|lease| lease.reader == reader) {
            self.tell(reader, Event::Revoke(lease.run.clone()));
            self.lease(heir, lease.run, now);
        }
    }

    /// A reader gives a lease back.
    pub(super) fn returned(&mut self, reader: Handle, run: &Run, why: (Failure, String), now: Instant) {
        let (failure, reason) = why;
        let is_lease = self.origin.feed.has(reader, run);
        if !is_lease && !self.audit.returned(reader, &self.members) {
            return;
        }
        self.origin.feed.release(|lease| lease.reader == reader && lease.run == *run);
        match failure {
            Failure::Final => {
                self.origin.refused.insert(reader);
                self.origin.reason = Some(reason);
            }
            Failure::Later { retry_after } => {
                let doubled = PAUSE * 2_u32.pow(self.origin.failures.min(FAILURES_MAX));
                self.origin.failures += 1;
                self.origin.quiet_until = Some(now + retry_after.max(doubled));
                self.origin.reason = Some(reason);
            }
            Failure::NoRanges => self.one_stream(reader, now),
        }
    }

    /// The others' connections get the whole blob as well: only the first goes on.
    fn one_stream(&mut self, reader: Handle, now: Instant) {
        if self.origin.one_stream {
            return;
        }
        self.origin.one_stream = true;
        for lease in self.origin.feed.release(|_| true) {
            self.tell(lease.reader, Event::Revoke(lease.run));
        }
        self.lease(reader, 0..self.layout.count(), now);
    }

    /// The origin gives this leech nothing, which says nothing of what it gives to others.
    pub(super) fn reads_no_more(&mut self, reader: Handle, run: &Run) {
        if self.origin.feed.has(reader, run) {
            self.origin.feed.release(|lease| lease.reader == reader);
            self.puller(reader).reads_origin = false;
        }
    }

    /// The runs that it was reading.
    pub(super) fn release_all(&mut self, reader: Handle) -> Vec<Run> {
        self.origin.refused.remove(&reader);
        self.origin.busy.remove(&reader);
        let released = self.origin.feed.release(|lease| lease.reader == reader);
        released.into_iter().map(|lease| lease.run).collect()
    }

    /// Leases that are done end; one that stalls ends if somebody else can take it.
    pub(super) fn end_leases(&mut self, now: Instant) {
        if self.origin.failed_at.is_some_and(|at| now.duration_since(at) > FAILED_KEPT) {
            self.origin.failed_at = None;
            self.origin.failures = 0;
            self.origin.refused.clear();
        }
        let (pieces, members) = (&self.pieces, &self.members);
        let of_leech = |lease: &Lease| members.get(&lease.reader).is_some_and(Puller::is_leech);
        if self.origin.feed.leases().iter().any(of_leech) && self.others_can_read() {
            for lease in self.origin.feed.release(of_leech) {
                self.events.push((lease.reader, Event::Revoke(lease.run)));
            }
        }
        let is_over =
            |lease: &Lease| !lease.run.clone().any(|index| lacks(pieces, members, lease.reader, index));
        for lease in self.origin.feed.release(is_over) {
            self.origin.feed.measure(&lease, now);
        }
        let busy: BTreeSet<Handle> = self.origin.feed.leases().iter().map(|lease| lease.reader).collect();
        let stalled = |lease: &&Lease| lease.has_stalled(now);
        if !self.origin.feed.leases().iter().any(|lease| stalled(&lease)) {
            return;
        }
        let mut idle: Vec<Handle> =
            self.members.keys().copied().filter(|h| !busy.contains(h) && self.may_read(*h)).collect();
        while let Some(lease) = self.origin.feed.leases().iter().find(stalled) {
            let (reader, run) = (lease.reader, lease.run.clone());
            let Some(heir) = idle.pop() else { break };
            self.origin.feed.release(|lease| lease.run == run);
            self.puller(reader).last_stall = Some(now);
            self.tell(reader, Event::Revoke(run.clone()));
            for part in self.free_runs(&run) {
                self.lease(heir, part, now);
            }
        }
    }

    /// Gives free runs to readers while there are both.
    pub(super) fn grant(&mut self, now: Instant) {
        let quiet = self.origin.quiet_until.is_some_and(|until| now < until);
        // Small blobs come from here.
        if quiet || self.origin.failed_at.is_some() || self.content.is_some() {
            return;
        }
        if !(0..self.layout.count()).any(|index| self.is_free(index)) {
            return;
        }
        // More than this is all the same.
        let able = self.members.keys().filter(|handle| self.may_read(**handle)).take(2 * READERS_MAX).count();
        // The first of a crowd is not alone for long: a piece has been read by the time that this is known.
        let alone = able == 1 && self.members.values().any(|puller| puller.read > 0);
        let readers_max = match (self.origin.one_stream, alone) {
            (true, _) => 1,
            (false, true) => RUNS_ALONE,
            (false, false) => (readers_of(able) >> self.origin.failures.min(READERS_MAX.ilog2())).max(1),
        };
        let begun: u32 = self.members.values().map(|puller| puller.read).sum();
        let first = READERS_FIRST.saturating_add(usize::try_from(begun).unwrap_or(usize::MAX));
        let began_at = *self.origin.began_at.get_or_insert(now);
        let is_first = now.duration_since(began_at) < READERS_FIRST_TIME;
        let readers_max = if is_first { readers_max.min(first) } else { readers_max };
        while let Some(reader) = self.next_reader(readers_max, able, now) {
            let Some(run) = self.next_run(reader, able) else { break };
            self.lease(reader, run, now);
        }
    }

    /// The reader that may have one more lease: whose pieces spread fastest, then who has read least.
    fn next_reader(&self, readers_max: usize, able: usize, now: Instant) -> Option<Handle> {
        let (pieces, members) = (&self.pieces, &self.members);
        let busy = self.origin.feed.busy(|reader, index| lacks(pieces, members, reader, index));
        if busy.len() >= readers_max {
            return None;
        }
        let each_max = readers_max.div_ceil(able.clamp(1, RUNS_ALONE)).min(RUNS_ALONE);
        let leases_of = |handle: Handle| busy.iter().filter(|reader| **reader == handle).count();
        let stalled = |p: &Puller| p.last_stall.is_some_and(|at| now.duration_since(at) < STALL_KEPT);
        self.members
            .iter()
            .filter(|(handle, puller)| {
                let lacks_some = !puller.is_leech() || self.next_run(**handle, able).is_some();
                self.may_read(**handle) && leases_of(**handle) < each_max && lacks_some
            })
            .min_by_key(|(handle, puller)| {
                let all = self.origin.feed.leases().iter().filter(|lease| lease.reader == **handle).count();
                (stalled(puller), all, puller.unspread, puller.read, **handle)
            })
            .map(|(&handle, _)| handle)
    }

    fn next_run(&self, reader: Handle, able: usize) -> Option<Run> {
        let count = self.layout.count();
        let taken = &self.members[&reader].taken;
        // What a leech has read is free, and not to be read again by it.
        let is_free = |index: u32| self.is_free(index) && !taken.contains(&index);
        let start = (0..count).find(|&index| is_free(index))?;
        let readers = u32::try_from(able.clamp(1, RUNS_ALONE)).expect("clamped");
        let len_max = match self.origin.one_stream {
            true => count,
            false => {
                let most = u32::try_from(RUN_BYTES_MAX / self.layout.piece_len()).expect("a few pieces");
                let len = self.origin.feed.run_len().min(count / (readers * LEASES_EACH)).clamp(1, most);
                let parts =
                    LEASES_OF_THE_REST * if able < RUNS_ALONE { RUNS_ALONE } else { readers_of(able) };
                let rest = (start..count).filter(|&index| is_free(index)).take(len as usize * parts).count();
                len.min(u32::try_from(rest / parts).expect("no more than the length")).max(1)
            }
        };
        let end = (start..count.min(start + len_max)).take_while(|&index| is_free(index)).last()? + 1;
        Some(start..end)
    }

    fn lease(&mut self, reader: Handle, run: Run, now: Instant) {
        self.origin.feed.take(reader, run.clone(), now);
        self.tell(reader, Event::Lease(run));
    }

    fn free_runs(&self, within: &Run) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for index in within.clone().filter(|&index| self.is_free(index)) {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }

    fn is_free(&self, index: u32) -> bool {
        self.pieces[index as usize].holders == 0 && !self.origin.feed.is_leased(index)
    }

    pub(super) fn may_read(&self, handle: Handle) -> bool {
        self.could_read(handle) && self.members[&handle].to_announce == 0
    }

    /// Once it has announced what it holds.
    fn could_read(&self, handle: Handle) -> bool {
        self.origin.refused.len() < REFUSALS_MAX
            && !self.origin.refused.contains(&handle)
            && self.members.get(&handle).is_some_and(|puller| {
                puller.reads_origin && !puller.whole && !puller.passive && !self.leaves_it(puller)
            })
    }

    /// What a leech reads only itself has, so it leaves that to others where there are any.
    fn leaves_it(&self, puller: &Puller) -> bool {
        puller.is_leech() && self.others_can_read()
    }

    fn others_can_read(&self) -> bool {
        let can = |puller: &Puller| puller.reads_origin && !puller.whole && !puller.is_leech();
        self.members.iter().any(|(handle, puller)| can(puller) && !self.origin.refused.contains(handle))
    }

    /// Pieces are missing, nobody reads and nobody can: the pullers are told.
    pub(super) fn give_up_if_stuck(&mut self, now: Instant) {
        let missing = self.pieces.iter().any(|piece| piece.holders == 0);
        let gives = |handle: &Handle| self.members.get(handle).is_some_and(|puller| !puller.is_leech());
        let coming = self.origin.feed.leases().iter().any(|lease| gives(&lease.reader))
            || self.members.values().any(|p| p.to_announce > 0 && !p.is_leech());
        if !missing || self.content.is_some() || coming {
            return;
        }
        let reads = self.origin.failures < FAILURES_MAX && self.origin.failed_at.is_none();
        let mut able = self.members.keys().filter(|handle| reads && self.could_read(**handle));
        // Of leeches none could if another one could.
        let by_leeches = match able.next() {
            Some(reader) if gives(reader) => return,
            reader => reader.is_some(),
        };
        let reason = self.origin.reason.clone().unwrap_or_else(|| "no_origin".to_owned());
        let fresh = self.origin.failed_at.is_none() && !by_leeches;
        if !by_leeches {
            self.origin.failed_at.get_or_insert(now);
        }
        let waits = |(&handle, puller): (&Handle, &Puller)| {
            let reads_itself = by_leeches && self.could_read(handle);
            (!puller.whole && !reads_itself).then_some(handle)
        };
        for handle in self.members.iter().filter_map(waits).collect::<Vec<_>>() {
            let told = &mut self.puller(handle).told_failed;
            if fresh || !*told {
                *told = true;
                self.tell(handle, Event::OriginFailed { reason: reason.clone() });
            }
        }
    }
}
