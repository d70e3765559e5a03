//! Where a flight may read its blob: each lead is asked with its own credentials, and with no other's.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Want;
use crate::{
    oci::host_name,
    origin::{Asker, Lead, Located, Origin, OriginError, Sought},
};

/// Leads of one flight, of which each holds a client's token: the newest are kept, for tokens age.
const LEADS_MAX: usize = 32;

/// All that those who want one blob have named. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leads {
    sought: Sought,
    known: Arc<Mutex<Known>>,
    /// The one that is read from, as long as it gives. Held while it is looked for, so that all readers ask once.
    located: Arc<tokio::sync::Mutex<Option<Located>>>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order of asking.
    leads: Vec<Lead>,
    /// Hosts that took too long once: the others come first, and each is tried once before slow ones are put up with.
    slow: Vec<String>,
}

/// Whether both may mean the same registry: containerd's labels have lost the port.
fn may_be_one(a: &str, b: &str) -> bool {
    a == b || a == host_name(b) || host_name(a) == b
}

impl Known {
    fn add(&mut self, lead: Lead) {
        if self.leads.contains(&lead) {
            return;
        }
        if self.leads.len() >= LEADS_MAX {
            let oldest = self.leads.iter().position(|lead| lead.asker != Asker::Node).unwrap_or(0);
            self.leads.remove(oldest);
        }
        self.leads.push(lead);
    }

    /// This very lead is refused. Whether there are others.
    fn refused(&mut self, lead: &Lead) -> bool {
        if let Some(at) = self.leads.iter().position(|known| known == lead) {
            let lead = self.leads.remove(at);
            self.leads.push(lead);
        }
        self.leads.len() > 1
    }

    /// Whether a lead goes to another host, which has not been too slow itself.
    fn has_untried_beside(&self, host: &str) -> bool {
        let mut hosts = self.leads.iter().map(|lead| &lead.repository.host);
        hosts.any(|other| !may_be_one(other, host) && !self.slow.contains(other))
    }

    /// Whatever leads to this host takes too long. Whether there is another that has not been tried.
    fn slow(&mut self, host: &str) -> bool {
        if !self.has_untried_beside(host) {
            return false;
        }
        if !self.slow.iter().any(|slow| slow == host) {
            self.slow.push(host.to_owned());
        }
        // Stable: among equals the order stays.
        self.leads.sort_by_key(|lead| self.slow.contains(&lead.repository.host));
        true
    }
}

impl Leads {
    pub(super) fn of(want: &Want) -> Self {
        let sought = Sought { kind: want.kind, digest: want.digest.clone(), len: want.len };
        let leads = Self { sought, known: Arc::default(), located: Arc::default() };
        leads.add(want);
        leads
    }

    /// Somebody joins who may have been let in where the others were not.
    pub(super) fn add(&self, want: &Want) {
        let mut known = self.known.lock();
        for repository in &want.origins {
            known.add(Lead { repository: repository.clone(), asker: want.asker.clone() });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.lock().leads.len()
    }

    /// The blob at the first lead that has it.
    pub(super) async fn locate(&self, origin: &Origin) -> Result<Located, OriginError> {
        let mut located = self.located.lock().await;
        if let Some(located) = &*located {
            return Ok(located.clone());
        }
        let leads = self.known.lock().leads.clone();
        let found = origin.follow(&leads, &self.sought).await?;
        Ok(located.insert(found).clone())
    }

    /// Reading there has failed: whether another lead is worth a try, which is asked from now on. What is refused to one
    /// may be open to another; a host that is in trouble is so for everybody.
    pub(super) async fn turn_from(&self, failed: &Lead, error: &OriginError) -> bool {
        let mut located = self.located.lock().await;
        let others = match error.is_final() {
            true => self.known.lock().refused(failed),
            false => self.known.lock().slow(&failed.repository.host),
        };
        if others && located.as_ref().is_some_and(|located| located.lead() == failed) {
            *located = None;
        }
        others
    }

    /// Whether another host is worth a try, because this one takes too long.
    pub(super) fn may_turn_from(&self, slow: &Lead) -> bool {
        self.known.lock().has_untried_beside(&slow.repository.host)
    }

    /// The lease of a run was taken back: whoever is read from is too slow.
    pub(super) async fn turn(&self) {
        let mut located = self.located.lock().await;
        let host = located.as_ref().map(|located| located.lead().repository.host.clone());
        if host.is_some_and(|host| self.known.lock().slow(&host)) {
            *located = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::origin::Pass;

    fn lead(repository: &str, pass: &'static str) -> Lead {
        let asker = Asker::Client(Some(Pass::new(HeaderValue::from_static(pass))));
        Lead { repository: repository.parse().unwrap(), asker }
    }

    #[test]
    fn a_refused_pass_gives_way_to_the_next_one() {
        let mut known = Known::default();
        known.add(lead("r.local/a", "old"));
        assert!(!known.refused(&lead("r.local/a", "old")), "there is no other");
        known.add(lead("r.local/a", "new"));
        known.add(lead("r.local/a", "new"));
        assert!(known.refused(&lead("r.local/a", "old")));
        assert_eq!(known.leads, [lead("r.local/a", "new"), lead("r.local/a", "old")]);
    }

    #[test]
    fn of_slow_hosts_each_is_left_once() {
        let mut known = Known::default();
        for repository in ["a.local/x", "a.local/y", "b.local/x"] {
            known.add(lead(repository, "p"));
        }
        assert!(known.slow("a.local"));
        assert_eq!(known.leads[0], lead("b.local/x", "p"));
        assert!(!known.slow("b.local"), "every host is slow");
        known.add(lead("c.local/x", "p"));
        assert!(known.slow("b.local"));
        assert_eq!(known.leads[0], lead("c.local/x", "p"));
    }

    #[test]
    fn a_host_that_has_lost_its_port_is_no_other_host() {
        assert!(may_be_one("r.local", "r.local:5000") && may_be_one("r.local:5000", "r.local"));
        assert!(!may_be_one("r.local:5001", "r.local:5000") && !may_be_one("r.local", "r.local.evil:5000"));
        let mut known = Known::default();
        known.add(lead("r.local:5000/x", "p"));
        known.add(Lead { asker: Asker::Node, ..lead("r.local/x", "p") });
        assert!(!known.slow("r.local:5000"));
    }

    #[test]
    fn the_newest_passes_are_kept_and_the_nodes_own_leads() {
        let mut known = Known::default();
        let own = Lead { asker: Asker::Node, ..lead("r.local/a", "") };
        known.add(own.clone());
        for name in 0..2 * LEADS_MAX {
            known.add(lead(&format!("r.local/a{name}"), "p"));
        }
        assert_eq!((known.leads.len(), &known.leads[0]), (LEADS_MAX, &own));
        assert_eq!(known.leads.last(), Some(&lead(&format!("r.local/a{}", 2 * LEADS_MAX - 1), "p")));
    }
}
