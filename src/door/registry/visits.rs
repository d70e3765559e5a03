//! What containerd has lately pulled through this mirror: where it has, it need not be kept from fetching by itself.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::oci::Repository;

/// A visit counts for so long: the pull of an image asks for manifest, config and layers within minutes, and each
/// request renews it.
const COUNTS_FOR: Duration = Duration::from_secs(600);

/// Repositories remembered; beyond it the oldest visits go. A node pulls from a few hundred.
const VISITS_MAX: usize = 4096;

/// The repositories of which containerd has asked this mirror for something, and got it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Visits(Arc<Mutex<HashMap<Repository, Instant>>>);

impl Visits {
    pub(super) fn note(&self, repository: &Repository, now: Instant) {
        let mut visits = self.0.lock();
        if visits.len() >= VISITS_MAX && !visits.contains_key(repository) {
            visits.retain(|_, at| now.saturating_duration_since(*at) < COUNTS_FOR);
            let oldest = visits.iter().min_by_key(|(_, at)| **at).map(|(oldest, _)| oldest.clone());
            if let Some(oldest) = oldest.filter(|_| visits.len() >= VISITS_MAX) {
                visits.remove(&oldest);
            }
        }
        visits.insert(repository.clone(), now);
    }

    /// Whether containerd pulls one of these repositories through the mirror now. Hosts may lack the port that
    /// containerd's labels lose.
    #[must_use]
    pub fn include(&self, repositories: &[Repository], now: Instant) -> bool {
        let visits = self.0.lock();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < COUNTS_FOR;
        let same = |visited: &Repository, wanted: &Repository| {
            visited.path == wanted.path && (visited.host == wanted.host || visited.host_name() == wanted.host)
        };
        let visited =
            |wanted: &Repository| visits.iter().any(|(visited, at)| same(visited, wanted) && fresh(at));
        repositories.iter().any(visited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(text: &str) -> Repository {
        text.parse().unwrap()
    }

    #[test]
    fn a_visit_counts_for_ten_minutes_and_for_hosts_without_their_port() {
        let (visits, start) = (Visits::default(), Instant::now());
        visits.note(&repository("r.local:5000/a"), start);
        let included = |text: &str, after| visits.include(&[repository(text)], start + after);
        assert!(included("r.local:5000/a", Duration::ZERO) && included("r.local/a", COUNTS_FOR / 2));
        assert!(!included("r.local:6000/a", Duration::ZERO) && !included("r.local:5000/b", Duration::ZERO));
        assert!(!included("r.local:5000/a", COUNTS_FOR));
        visits.note(&repository("r.local:5000/a"), start + COUNTS_FOR);
        assert!(included("r.local:5000/a", COUNTS_FOR));
    }

    #[test]
    fn memory_is_bounded() {
        let (visits, start) = (Visits::default(), Instant::now());
        for number in 0..=VISITS_MAX {
            let after = Duration::from_millis(number as u64);
            visits.note(&repository(&format!("r.local/a{number}")), start + after);
        }
        assert_eq!(visits.0.lock().len(), VISITS_MAX);
        assert!(!visits.include(&[repository("r.local/a0")], start));
    }
}
