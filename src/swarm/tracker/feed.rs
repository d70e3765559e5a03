//! Leases on runs of pieces that come from one place: from the origin for the whole swarm, from the other zones for
//! one zone.

use std::time::{Duration, Instant};

use crate::swarm::message::{Handle, Run};

/// A lease is to last about this long, so that what is read is soon with more than one node, and five times the
/// time to its first byte, so that the link does not stand idle: a near registry's lease is two pieces at
/// 100 Mbit/s, that of one 100 ms away half a second's worth.
const LEASE_TIME: Duration = Duration::from_millis(50);
const LEASE_OVER_LATENCY: u32 = 5;
/// The first leases: two pieces are enough to tell the latency from the rate.
const RUN_LEN_FIRST: u32 = 2;
/// A lease without a byte for so long goes to another reader that is there.
const STALL_MAX: Duration = Duration::from_secs(2);

pub(super) struct Lease {
    pub(super) run: Run,
    pub(super) reader: Handle,
    granted_at: Instant,
    /// The first piece and when it came.
    first: Option<(u32, Instant)>,
    progress_at: Instant,
}

impl Lease {
    pub(super) fn has_stalled(&self, now: Instant) -> bool {
        now.duration_since(self.progress_at) > STALL_MAX
    }
}

pub(super) struct Feed {
    leases: Vec<Lease>,
    /// Pieces of the next lease.
    run_len: u32,
    /// What the last leases took to their first piece, and for each one after it.
    latency: Duration,
    each: Duration,
}

impl Default for Feed {
    fn default() -> Self {
        Self { leases: Vec::new(), run_len: RUN_LEN_FIRST, latency: Duration::ZERO, each: Duration::ZERO }
    }
}

impl Feed {
    pub(super) fn leases(&self) -> &[Lease] {
        &self.leases
    }

    pub(super) fn run_len(&self) -> u32 {
        self.run_len
    }

    pub(super) fn has(&self, reader: Handle, run: &Run) -> bool {
        self.leases.iter().any(|lease| lease.reader == reader && lease.run == *run)
    }

    pub(super) fn is_leased(&self, index: u32) -> bool {
        self.leases.iter().any(|lease| lease.run.contains(&index))
    }

    pub(super) fn take(&mut self, reader: Handle, run: Run, now: Instant) {
        self.leases.push(Lease { run, reader, granted_at: now, first: None, progress_at: now });
    }

    pub(super) fn release(&mut self, which: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        self.leases.extract_if(.., |lease| which(lease)).collect()
    }

    /// Bytes came for the lease of `reader` that contains `index`, if only a part of that piece; `false` if there
    /// is no such lease.
    pub(super) fn progress(&mut self, reader: Handle, index: u32, is_here: bool, now: Instant) -> bool {
        let lease = self.leases.iter_mut().find(|l| l.reader == reader && l.run.contains(&index));
        let Some(lease) = lease else { return false };
        lease.progress_at = now;
        if is_here {
            lease.first.get_or_insert((index, now));
        }
        true
    }

    /// The lease of `reader` that contains `index` has not begun, through no fault of whoever is read from.
    pub(super) fn waits(&mut self, reader: Handle, index: u32, now: Instant) {
        let mut leases = self.leases.iter_mut();
        if let Some(lease) = leases.find(|l| l.reader == reader && l.run.contains(&index)) {
            lease.progress_at = now;
            if lease.first.is_none() {
                lease.granted_at = now;
            }
        }
    }

    /// A lease is done: its times say how long the next ones should be.
    pub(super) fn measure(&mut self, lease: &Lease, now: Instant) {
        let Some((first, first_at)) = lease.first else { return };
        let read = lease.run.end.saturating_sub(first + 1);
        if read == 0 {
            return;
        }
        let each = (now.duration_since(first_at) / read).max(Duration::from_micros(1));
        let latency = first_at.duration_since(lease.granted_at).saturating_sub(each);
        (self.latency, self.each) = (latency, each);
        let time = LEASE_TIME.max(latency * LEASE_OVER_LATENCY);
        let fitting = u32::try_from(time.as_micros().div_ceil(each.as_micros())).unwrap_or(u32::MAX);
        let (least, most) = (self.run_len.div_ceil(2), self.run_len.saturating_mul(2));
        self.run_len = fitting.clamp(least, most).max(RUN_LEN_FIRST);
    }

    /// The reader of each lease that counts against the limit. One that will be done before the next one's first piece
    /// comes makes room already, and so does one whose last piece is coming.
    pub(super) fn busy(&self, missing: impl Fn(Handle, u32) -> bool) -> Vec<Handle> {
        let each = self.each.max(Duration::from_micros(1));
        let ahead = usize::try_from(self.latency.as_micros() / each.as_micros()).unwrap_or(usize::MAX).max(1);
        let counts = |lease: &&Lease| {
            let left = lease.run.clone().filter(|&index| missing(lease.reader, index)).count();
            left > ahead.min(lease.run.len() - 1)
        };
        self.leases.iter().filter(counts).map(|lease| lease.reader).collect()
    }
}
