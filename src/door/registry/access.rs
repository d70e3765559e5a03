//! Who may have what: the registry says so, once in a while, to the client's own credentials.
//!
//! ```text
//! verify       the registry is asked; while it is down, nobody gets what he has not been granted lately
//! offline-ok   the registry is asked; while it is down, whoever knows the digest may have what the cluster has
//! digest       whoever knows the digest may have it
//! ```
//! A digest is 256 bits that only a manifest tells, and manifests are given out like everything else here. So the
//! default is offline-ok: a registry that is down stops no rollout whose bytes the cluster holds. Down is a registry
//! only if it has answered this node before, or if the operator has written that very host into the settings or into hosts.toml's
//! folders, or if it is the one of names without a host: a made-up one opens nothing, neither where a pattern of the settings
//! or a name without its port would include it, nor does one that the defaults name and this node has never reached.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    oci::{Digest, Repository},
    origin::{Asker, Kind, Origin, OriginError},
    pull::Registries,
    store::{File, Kept},
};

/// A grant counts for so long: a pull with its retries, and not much longer than a token lives.
pub const GRANTED_FOR: Duration = Duration::from_secs(300);

/// A registry that was down is not asked again for so long: every request would wait for it anew.
const DOWN_FOR: Duration = Duration::from_secs(5);

/// A registry that failed in so many repositories at once is down in all of them. One that fails in a single one may do
/// so because of what was asked.
const DOWN_IN: usize = 2;

/// Grants remembered, of 200 bytes each; beyond it all are asked for again.
const GRANTS_MAX: usize = 1 << 14;

/// Registries remembered.
const HOSTS_MAX: usize = 1024;
/// Where.
pub(super) const ANSWERED: File =
    File { name: "registries.json", about: "which registries have answered this node" };

/// When a client may have what it names by digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    Verify,
    Digest,
    #[default]
    OfflineOk,
}

/// What the registry said of something that may be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    /// Bytes, where somebody said.
    pub(super) len: Option<u64>,
    /// The registry could not be asked.
    pub(super) unchecked: bool,
}

/// One question: who wants what of which repository. Credentials are kept as a keyed hash.
type Question = (Repository, Digest, [u8; 32]);

/// Held while the registry is asked, so that a crowd of clients asks once.
type Answered = Arc<tokio::sync::Mutex<Option<(Grant, Instant)>>>;

/// Asks, and remembers.
pub(super) struct Gate {
    access: Access,
    origin: Origin,
    named: Registries,
    /// Of this process alone.
    key: [u8; 32],
    grants: Mutex<HashMap<Question, Answered>>,
    answered: Kept<HashSet<String>>,
    down: Mutex<Down>,
}

/// Where registries failed a moment ago, and until when that counts.
#[derive(Debug, Default)]
struct Down(HashMap<String, HashMap<Option<String>, Instant>>);

impl Down {
    /// `None` for all repositories of `host`.
    fn note(&mut self, host: &str, path: Option<&str>, now: Instant) {
        self.prune(now);
        if self.0.len() < HOSTS_MAX {
            let failed = self.0.entry(host.to_owned()).or_default();
            if failed.len() <= DOWN_IN {
                failed.insert(path.map(str::to_owned), now + DOWN_FOR);
            }
        }
    }

    fn is_down(&mut self, repository: &Repository, now: Instant) -> bool {
        self.prune(now);
        let Some(failed) = self.0.get(&repository.host) else { return false };
        failed.len() >= DOWN_IN
            || failed.contains_key(&None)
            || failed.contains_key(&Some(repository.path.clone()))
    }

    fn prune(&mut self, now: Instant) {
        self.0.retain(|_, failed| {
            failed.retain(|_, until| now < *until);
            !failed.is_empty()
        });
    }
}

impl Gate {
    /// `named` may be done without while they are down.
    pub(super) fn new(
        access: Access,
        origin: Origin,
        named: Registries,
        answered: Kept<HashSet<String>>,
    ) -> Self {
        Self {
            access,
            origin,
            named,
            key: rand::random(),
            grants: Mutex::default(),
            answered,
            down: Mutex::default(),
        }
    }

    /// Whether `asker` may have `digest` of `repository`.
    ///
    /// # Errors
    /// What the registry says if he may not, or that it is down and the policy wants its word.
    pub(super) async fn grant(
        &self,
        repository: &Repository,
        (kind, digest): (Kind, &Digest),
        asker: &Asker,
    ) -> Result<Grant, OriginError> {
        if self.access == Access::Digest {
            return Ok(Grant::default());
        }
        let entry = self.entry((repository.clone(), digest.clone(), self.hash(asker)));
        let mut entry = entry.lock().await;
        if let Some((grant, until)) = entry.as_ref()
            && Instant::now() < *until
        {
            return Ok(grant.clone());
        }
        match self.ask(repository, (kind, digest), asker).await {
            Ok(len) => {
                let grant = Grant { len: Some(len), unchecked: false };
                *entry = Some((grant.clone(), Instant::now() + GRANTED_FOR));
                Ok(grant)
            }
            Err(error) if error.is_outage() => {
                let (why, goes_on) = (crate::pull::chain_of(&error), self.goes_on_without(repository).await);
                if goes_on {
                    tracing::info!(%repository, %digest, "served unchecked: {why}");
                    return Ok(Grant { len: None, unchecked: true });
                }
                tracing::info!(
                    %repository, %digest, access = ?self.access,
                    "not served: `access` wants this registry's word, or nobody has named it and it has not answered this node before: {why}"
                );
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The registry has let `asker` have a document of `repository` just now.
    pub(super) async fn granted(&self, repository: &Repository, digest: &Digest, len: u64, asker: &Asker) {
        self.heard_of(&repository.host);
        let entry = self.entry((repository.clone(), digest.clone(), self.hash(asker)));
        let grant = Grant { len: Some(len), unchecked: false };
        *entry.lock().await = Some((grant, Instant::now() + GRANTED_FOR));
    }

    /// Whether a registry that does not answer is one that is down, and may be done without.
    pub(super) async fn is_missed(&self, repository: &Repository) -> bool {
        let known = self.answered.read(|answered| answered.contains(&repository.host));
        known || self.named.list(&repository.host) || self.origin.is_written(&repository.host).await
    }

    /// Tells one client's credentials from another's.
    pub(super) fn hash(&self, asker: &Asker) -> [u8; 32] {
        match asker {
            Asker::Client(Some(pass)) => *blake3::keyed_hash(&self.key, pass.as_bytes()).as_bytes(),
            // Nobody who asks the mirror was lent anything to ask with.
            Asker::Client(None) | Asker::Node | Asker::Lent(_) => [0; 32],
        }
    }

    /// An error right away if the registry was down a moment ago.
    pub(super) fn is_up(&self, repository: &Repository) -> Result<(), OriginError> {
        match self.down.lock().is_down(repository, Instant::now()) {
            true => Err(OriginError::Resting { at: repository.host.clone(), rest: DOWN_FOR }),
            false => Ok(()),
        }
    }

    /// What came of asking a registry.
    pub(super) fn heard<T>(&self, repository: &Repository, answer: &Result<T, OriginError>) {
        let Repository { host, path } = repository;
        match answer {
            Err(error) if error.is_outage() => {
                let path = (!error.is_unreachable()).then_some(path.as_str());
                self.down.lock().note(host, path, Instant::now());
            }
            // It answers, whatever it says; or there is no such registry.
            Ok(_) => self.heard_of(host),
            Err(error) if error.status().is_some() => self.heard_of(host),
            Err(_) => {}
        }
    }

    fn heard_of(&self, host: &str) {
        self.answered.change(|answered| {
            if answered.len() >= HOSTS_MAX && !answered.contains(host) {
                answered.clear();
            }
            answered.insert(host.to_owned())
        });
    }

    async fn goes_on_without(&self, repository: &Repository) -> bool {
        match self.access {
            Access::Verify => false,
            Access::Digest => true,
            Access::OfflineOk => self.is_missed(repository).await,
        }
    }

    /// Asks the registry, unless it was down a moment ago; the length of what may be had.
    pub(super) async fn ask(
        &self,
        repository: &Repository,
        wanted: (Kind, &Digest),
        asker: &Asker,
    ) -> Result<u64, OriginError> {
        self.is_up(repository)?;
        let answer = self.origin.reach(repository, wanted, asker).await;
        self.heard(repository, &answer);
        answer
    }

    fn entry(&self, question: Question) -> Answered {
        let mut grants = self.grants.lock();
        if grants.len() >= GRANTS_MAX {
            grants.clear();
        }
        grants.entry(question).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_fails_in_one_repository_is_up_in_the_others() {
        let [a, b, c] = ["r.local/a", "r.local/b", "r.local/c"].map(|name| name.parse().unwrap());
        let (mut down, now) = (Down::default(), Instant::now());
        down.note("r.local", Some("a"), now);
        assert!(down.is_down(&a, now) && !down.is_down(&b, now));
        assert!(!down.is_down(&a, now + DOWN_FOR));
        down.note("r.local", Some("a"), now);
        down.note("r.local", Some("b"), now);
        assert!(down.is_down(&c, now), "it fails everywhere");
        let mut down = Down::default();
        down.note("r.local", None, now);
        assert!(down.is_down(&a, now), "nobody is there");
    }
}
