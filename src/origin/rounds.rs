//! Whom to ask next, and when: several endpoints, several rounds, full jitter between them.
//!
//! ```text
//! round 1: mirror, mirror, server   wait   round 2: mirror, server   wait   round 3 ...
//! ```
//! A mirror that is down costs no waiting: the next one is asked at once. Between two rounds we wait a random
//! part of an exponentially growing time, or as long as the registry asked. An endpoint whose answer
//! is final ("not found", a wrong length) is not asked again.

use std::time::{Duration, SystemTime};

use super::OriginError;

/// How long a registry is waited for.
#[derive(Clone, Debug)]
pub struct Patience {
    /// TCP connections.
    pub connect: Duration,
    /// From the request to the answer's head; covers the TLS handshake.
    pub answer: Duration,
    /// Between two chunks of a body.
    pub stall: Duration,
    /// Times that every endpoint is asked.
    pub rounds: u32,
    /// Longest wait after the first round; doubles with each.
    pub backoff: Duration,
    /// Longest wait between two rounds.
    pub backoff_max: Duration,
    /// Longest `Retry-After` waited out here; a longer one is the caller's to judge.
    pub retry_after_max: Duration,
}

impl Default for Patience {
    /// Five rounds last 3 s on average: a registry's restart behind a load balancer. A longer outage is the mesh's
    /// to bridge (a lease that stalls goes to another node). Registries begin a large cold blob within 10 s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(20),
            rounds: 5,
            backoff: Duration::from_millis(400),
            backoff_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(30),
        }
    }
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Step<E> {
    Ask(E),
    Wait(Duration),
    Over(OriginError),
}

/// The order in which endpoints are asked. Pure: randomness comes in, waiting is done by the caller.
#[derive(Debug)]
pub(super) struct Rounds<E> {
    patience: Patience,
    /// Those whose last answer was not final.
    live: Vec<E>,
    asked: usize,
    round: u32,
    asking: Option<E>,
    /// Answered, and may break off.
    answering: Option<E>,
    next_live: Vec<E>,
    transient: Option<OriginError>,
    last_final: Option<OriginError>,
    retry_after: Option<Duration>,
}

impl<E: Clone> Rounds<E> {
    pub(super) fn new(endpoints: Vec<E>, patience: Patience) -> Self {
        Self {
            patience,
            live: endpoints,
            asked: 0,
            round: 0,
            asking: None,
            answering: None,
            next_live: Vec::new(),
            transient: None,
            last_final: None,
            retry_after: None,
        }
    }

    /// `unit` is random, in `0.0..1.0`. `None` only when there was no endpoint to begin with.
    pub(super) fn next(&mut self, unit: f64) -> Option<Step<E>> {
        // A question that was dropped before it was answered is asked again.
        if let Some(endpoint) = &self.asking {
            return Some(Step::Ask(endpoint.clone()));
        }
        if let Some(endpoint) = self.live.get(self.asked) {
            self.asked += 1;
            self.asking = Some(endpoint.clone());
            return Some(Step::Ask(endpoint.clone()));
        }
        let Some(transient) = self.transient.take() else {
            return self.last_final.take().map(Step::Over);
        };
        self.round += 1;
        let too_long = self.retry_after.is_some_and(|wait| wait > self.patience.retry_after_max);
        if self.round >= self.patience.rounds || too_long {
            return Some(Step::Over(transient));
        }
        self.live = std::mem::take(&mut self.next_live);
        self.asked = 0;
        let wait = self.retry_after.take().unwrap_or_default().max(self.backoff(unit));
        Some(Step::Wait(wait))
    }

    /// The endpoint that [`Step::Ask`] named last gave this error.
    pub(super) fn failed(&mut self, error: OriginError) {
        if error.is_final() {
            return self.failed_for_good(error);
        }
        let endpoint = self.asking.take().or_else(|| self.answering.take());
        self.next_live.extend(endpoint);
        // The shortest wait that one of them asked for lets us ask that one again.
        if let Some(wait) = error.retry_after() {
            self.retry_after = Some(self.retry_after.map_or(wait, |other| other.min(wait)));
        }
        self.transient = Some(error);
    }

    /// The endpoint that [`Step::Ask`] named last has answered; it may still fail later.
    pub(super) fn answered(&mut self) {
        self.answering = self.asking.take();
    }

    /// What was asked for is coming in: later failures are counted from the start.
    pub(super) fn progressed(&mut self) {
        self.round = 0;
        self.retry_after = None;
    }

    /// As [`Rounds::failed`], and the endpoint is not asked again whatever the error.
    pub(super) fn failed_for_good(&mut self, error: OriginError) {
        self.asking = None;
        self.answering = None;
        // That a guessed port has nobody behind it does not hide what another one said.
        let told = self.last_final.as_ref().is_some_and(OriginError::is_telling);
        if !told || error.is_telling() {
            self.last_final = Some(error);
        }
    }

    /// Full jitter: a random part of base * 2^round (AWS Architecture Blog, "Exponential Backoff And
    /// Jitter"), so that a crowd that was refused together does not come back together.
    fn backoff(&self, unit: f64) -> Duration {
        let doubled = self.patience.backoff.saturating_mul(1 << (self.round - 1).min(16));
        doubled.min(self.patience.backoff_max).mul_f64(unit.clamp(0.0, 1.0))
    }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(SystemTime::from(date).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> OriginError {
        OriginError::Stalled { at: "a".into(), after: Duration::ZERO }
    }

    fn throttled(seconds: u64) -> OriginError {
        let retry_after = Some(Duration::from_secs(seconds));
        OriginError::Throttled { at: "a".into(), retry_after, said: Default::default() }
    }

    fn absent() -> OriginError {
        OriginError::NotFound { at: "a".into() }
    }

    fn asked(step: Option<Step<char>>) -> char {
        match step {
            Some(Step::Ask(endpoint)) => endpoint,
            other => panic!("expected a question, got {other:?}"),
        }
    }

    fn waited(step: Option<Step<char>>) -> Duration {
        match step {
            Some(Step::Wait(wait)) => wait,
            other => panic!("expected a wait, got {other:?}"),
        }
    }

    #[test]
    fn mirrors_then_the_server_then_a_wait() {
        let mut rounds = Rounds::new(vec!['m', 's'], Patience::default());
        assert_eq!(asked(rounds.next(1.0)), 'm');
        rounds.failed(absent());
        assert_eq!(asked(rounds.next(1.0)), 's');
        rounds.failed(down());
        assert_eq!(waited(rounds.next(1.0)), Duration::from_millis(400));
        assert_eq!(asked(rounds.next(1.0)), 's', "the mirror's answer was final");
        rounds.failed(down());
        assert_eq!(waited(rounds.next(0.5)), Duration::from_millis(400), "half of 800 ms");
    }

    #[test]
    fn rounds_end_with_the_error_that_may_pass() {
        let mut rounds = Rounds::new(vec!['m', 's'], Patience { rounds: 1, ..Patience::default() });
        rounds.next(0.0);
        rounds.failed(down());
        rounds.next(0.0);
        rounds.failed(absent());
        assert!(matches!(rounds.next(0.0), Some(Step::Over(OriginError::Stalled { .. }))));
    }

    #[test]
    fn a_final_answer_everywhere_ends_it_at_once() {
        let mut rounds = Rounds::new(vec!['s'], Patience::default());
        rounds.next(0.0);
        rounds.failed(absent());
        assert!(matches!(rounds.next(0.0), Some(Step::Over(OriginError::NotFound { .. }))));
    }

    #[test]
    fn a_question_that_was_dropped_is_asked_again() {
        let mut rounds = Rounds::new(vec!['m', 's'], Patience::default());
        assert_eq!(asked(rounds.next(0.0)), 'm');
        assert_eq!(asked(rounds.next(0.0)), 'm');
        rounds.failed_for_good(down());
        assert_eq!(asked(rounds.next(0.0)), 's');
        rounds.answered();
        rounds.failed(down());
        waited(rounds.next(0.0));
        assert_eq!(asked(rounds.next(0.0)), 's', "m is out for good");
    }

    #[test]
    fn retry_after_is_honoured_within_its_bound() {
        let mut rounds = Rounds::new(vec!['s'], Patience::default());
        rounds.next(0.0);
        rounds.failed(throttled(7));
        assert_eq!(waited(rounds.next(0.0)), Duration::from_secs(7));
        rounds.next(0.0);
        rounds.failed(throttled(3600));
        assert!(matches!(rounds.next(0.0), Some(Step::Over(OriginError::Throttled { .. }))));
    }

    #[test]
    fn backoff_grows_to_its_bound_and_no_further() {
        let patience = Patience { rounds: 40, ..Patience::default() };
        let mut rounds = Rounds::new(vec!['s'], patience.clone());
        let mut last = Duration::ZERO;
        for _ in 0..39 {
            rounds.next(1.0);
            rounds.failed(down());
            let wait = waited(rounds.next(1.0));
            assert!(wait >= last && wait <= patience.backoff_max);
            last = wait;
        }
        assert_eq!(last, patience.backoff_max);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        let ten_later = "Sun, 06 Nov 1994 08:49:47 GMT";
        assert_eq!(retry_after(ten_later, now), Some(Duration::from_secs(10)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now + Duration::from_secs(9)),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }
}
