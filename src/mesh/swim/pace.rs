//! How often, how long and how many, by the number of members.
//!
//! Who has gone silent is probed by somebody after one period on average, whatever the number, for each probes
//! one a period; seven periods pass without one in a case of a thousand. The probe fails at the period's end,
//! the suspicion has its time, and the news takes a second or two. `sim` measures what comes of it.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use super::{frame::FRAME_LEN_MAX, watch::LARGE};

/// Probes of a small mesh. foca keeps this period for good; beyond [`SMALL`] its timer is stretched.
const PERIOD: Duration = Duration::from_millis(600);
/// Probes of a larger mesh, where a suspicion lasts longer anyway: half the traffic.
const PERIOD_LARGE: Duration = Duration::from_secs(1);
/// And where members are watched (`watch`): for what the watchers of one do not see, since they are gone as well.
const PERIOD_SPARSE: Duration = Duration::from_secs(20);
/// Up to so many members the shorter period counts.
const SMALL: usize = 32;
/// After this a probe is tried through others: hundreds of round trips within a data centre, and enough for a
/// connection to be made first.
const ROUND_TRIP: Duration = Duration::from_millis(300);
/// For each power of ten of members: so long a suspect has to hear of it and to answer.
const SUSPICION: Duration = Duration::from_secs(2);
/// News travels to three members every 200 ms: to 10,000 within some ten rounds.
const GOSSIP_EVERY: Duration = Duration::from_millis(200);
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// foca's settings for so many members.
pub(super) fn config(members: usize) -> foca::Config {
    foca::Config {
        probe_period: PERIOD,
        probe_rtt: ROUND_TRIP,
        num_indirect_probes: FANOUT,
        max_transmissions: transmissions(members),
        suspect_to_down_after: suspicion(members),
        // `Swim` sweeps: one timer for each death could be made to fill memory.
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(FRAME_LEN_MAX).expect("a frame is not empty"),
        notify_down_members: true,
        // What Compare does better.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(foca::PeriodicParams { frequency: GOSSIP_EVERY, num_members: FANOUT }),
    }
}

/// How much longer than foca's own the period between two probes is.
pub(super) fn stretch(members: usize) -> Duration {
    let period = match members {
        ..=SMALL => PERIOD,
        members if members < LARGE => PERIOD_LARGE,
        _ => PERIOD_SPARSE,
    };
    period - PERIOD
}

/// How long a suspect has, until it is down.
pub(super) fn suspicion(members: usize) -> Duration {
    SUSPICION.mul_f64(decades(members).max(1.0))
}

/// How often each tells a piece of news: a member that hears it from nobody is one in a hundred thousand, and is
/// told when views are compared. With the usual four for each power of ten, one of ten missed a death in one of six.
fn transmissions(members: usize) -> NonZeroU8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 12 and 26")]
    let count = (6.0 * decades(members + 1)).clamp(12.0, 26.0) as u8;
    NonZeroU8::new(count).expect("at least twelve")
}

fn decades(members: usize) -> f64 {
    f64::from(u32::try_from(members).unwrap_or(u32::MAX).max(1)).log10()
}
