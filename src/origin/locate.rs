//! Which registry has a blob, where containerd's labels have lost the port.
//!
//! `containerd.io/distribution.source.<host>` names the host without its port. Such a host is tried as it is
//! written, then with every port under which a folder of `hosts_dir` or an entry of `plain_http` knows it. The
//! first that answers with the descriptor's length wins, and is asked first the next time. That is for the node's own
//! pulls: a client says which registry it means, and its credentials go to no other port.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::{
    Asker, Lead, OriginError, Patience, Shared,
    document::MANIFEST_TYPES,
    endpoint::{Endpoint, Endpoints},
    error::Actual,
    exchange::Question,
    framing::content_range,
    name::Authority,
    rounds::{Rounds, Step},
    transport::{self, Answer},
};
use crate::{
    oci::{Digest, Repository},
    piece::BLOB_LEN_MAX,
};

/// Answers remembered. It saves questions, nothing depends on it: beyond it all are forgotten.
const MAX_REMEMBERED: usize = 4096;

/// Rounds over all candidates: one second of waiting at most, for the mesh may have the blob.
const ROUNDS: u32 = 3;

/// What is looked for: a blob, or a manifest, which registries keep in another place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Blob,
    Manifest,
}

impl Kind {
    /// Below the repository.
    pub(super) fn path(self, digest: &Digest) -> String {
        match self {
            Self::Blob => format!("blobs/{digest}"),
            Self::Manifest => format!("manifests/{digest}"),
        }
    }

    pub(super) fn accept(self) -> String {
        match self {
            Self::Blob => "*/*".to_owned(),
            Self::Manifest => MANIFEST_TYPES.join(", "),
        }
    }
}

/// Bytes of a digest that somebody looks for.
#[derive(Clone, Debug)]
pub struct Sought {
    pub kind: Kind,
    pub digest: Digest,
    /// As its descriptor, or the registry itself, states it.
    pub len: u64,
}

/// Where a blob can be read.
#[derive(Clone)]
pub struct Located {
    pub(super) repository: Repository,
    pub(super) kind: Kind,
    pub(super) digest: Digest,
    pub(super) len: u64,
    /// Which of those that were given has led here.
    pub(super) lead: Lead,
    /// The one that answered first.
    pub(super) endpoints: Endpoints,
}

impl std::fmt::Debug for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

impl Located {
    /// The repository that has the blob, with the port found.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Which of those that were given has led here; it is read in the same name.
    #[must_use]
    pub fn lead(&self) -> &Lead {
        &self.lead
    }

    pub(super) fn nobody(&self) -> OriginError {
        let why = "no host in its hosts.toml has the capability to pull".to_owned();
        OriginError::NoEndpoint { host: self.repository.host.clone(), why }
    }
}

/// Ports found again, by repository; under the empty path by host name alone.
#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<Repository, Repository>>);

/// Finds what is `sought` where one of the `leads` leads.
pub(super) async fn locate(
    shared: &Arc<Shared>,
    leads: &[Lead],
    sought: &Sought,
) -> Result<Located, OriginError> {
    let candidates = candidates(shared, leads).await;
    let tried = candidates.len();
    let mut rounds = Rounds::new(candidates, Patience { rounds: ROUNDS, ..shared.exchange.patience.clone() });
    let source = loop {
        match rounds.next(rand::random()) {
            Some(Step::Ask(candidate)) => {
                match Box::pin(find_in(shared, &candidate, sought)).await {
                    Ok(located) => {
                        if !candidate.lead.asker.is_client() {
                            shared.memory.remember(candidate.lead.repository, &located.repository);
                        }
                        return Ok(located);
                    }
                    // A guess, and packets to it are dropped: five seconds are enough to know.
                    Err(error) if candidate.guessed && transport::nobody_answered(&error) => {
                        rounds.failed_for_good(error);
                    }
                    Err(error) => rounds.failed(error),
                }
            }
            Some(Step::Wait(wait)) => sleep(wait).await,
            Some(Step::Over(error)) => break Some(Box::new(error)),
            None => break None,
        }
    };
    Err(OriginError::NoOrigin { digest: sought.digest.clone(), tried, source })
}

/// A repository to try, and what led there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    lead: Lead,
    repository: Repository,
    /// One of several ports, most of which nobody listens on.
    guessed: bool,
}

async fn candidates(shared: &Arc<Shared>, leads: &[Lead]) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for lead in leads {
        let wanted = &lead.repository;
        let Some(host) = Authority::parse(&wanted.host) else {
            tracing::debug!(host = %wanted.host, "no host: not asked");
            continue;
        };
        let mut hosts = vec![wanted.host.clone()];
        if !lead.asker.is_client() {
            if host.port.is_none() {
                hosts.extend(shared.book.with_ports(&host.name).await.iter().map(Authority::in_url));
            }
            let remembered = shared.memory.recall(wanted);
            // Stable: the remembered one first, the others as they were.
            hosts.sort_by_key(|host| Some(host) != remembered.as_ref());
        }
        let guessed = hosts.len() > 1;
        let of = |host| Candidate {
            lead: lead.clone(),
            guessed,
            repository: Repository { host, path: wanted.path.clone() },
        };
        for candidate in hosts.into_iter().map(of) {
            let same = |known: &Candidate| {
                known.repository == candidate.repository && known.lead.asker == candidate.lead.asker
            };
            if !candidates.iter().any(same) {
                candidates.push(candidate);
            }
        }
    }
    candidates
}

impl Memory {
    fn recall(&self, wanted: &Repository) -> Option<String> {
        let memory = self.0.lock();
        let host_alone = Repository { host: wanted.host.clone(), path: String::new() };
        memory.get(wanted).or_else(|| memory.get(&host_alone)).map(|found| found.host.clone())
    }

    fn remember(&self, wanted: Repository, found: &Repository) {
        let mut memory = self.0.lock();
        if memory.len() >= MAX_REMEMBERED {
            memory.clear();
        }
        let host_alone = Repository { host: wanted.host.clone(), path: String::new() };
        memory.insert(host_alone, found.clone());
        memory.insert(wanted, found.clone());
    }
}

/// Asks every endpoint of the candidate's repository once.
async fn find_in(shared: &Shared, candidate: &Candidate, sought: &Sought) -> Result<Located, OriginError> {
    let Candidate { lead, repository, .. } = candidate;
    let Sought { kind, digest, len } = sought;
    let endpoints = shared.book.endpoints(&repository.host).await?;
    let able: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.capabilities.pull).cloned().collect();
    let located = |endpoints: Endpoints| Located {
        repository: repository.clone(),
        kind: *kind,
        digest: digest.clone(),
        len: *len,
        lead: lead.clone(),
        endpoints,
    };
    let mut worst = None;
    for (index, endpoint) in able.iter().enumerate() {
        match blob_len(shared, endpoint, (repository, &lead.asker), sought).await {
            Ok(actual) if actual == *len => {
                let (before, rest) = able.split_at(index);
                return Ok(located(rest.iter().chain(before).cloned().collect()));
            }
            Ok(actual) => {
                let at = endpoint.url(&format!("{}/{}", repository.path, kind.path(digest)));
                let at = transport::shown(&at);
                let wrong = OriginError::WrongLength { at, expected: *len, actual: Actual::Stated(actual) };
                worst = worse(worst, wrong);
            }
            Err(error) => worst = worse(worst, error),
        }
    }
    Err(worst.unwrap_or_else(|| located(endpoints.clone()).nobody()))
}

/// What may pass by itself says more than what is final; among equals the later, for the registry is asked last.
fn worse(so_far: Option<OriginError>, error: OriginError) -> Option<OriginError> {
    match so_far {
        Some(so_far) if !so_far.is_final() && error.is_final() => Some(so_far),
        Some(_) | None => Some(error),
    }
}

/// A client waits no longer for its turn to be asked about.
const QUEUE_MAX: Duration = Duration::from_secs(5);

/// How long a registry may take to say who may have what, before it counts as down. It runs from when it is asked.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The length of what is `sought`, as the first endpoint states it that lets `asker` have it.
pub(super) async fn reach(
    shared: &Shared,
    repository: &Repository,
    sought: &Sought,
    asker: &Asker,
) -> Result<u64, OriginError> {
    let endpoints = shared.book.endpoints(&repository.host).await?;
    let patience = shared.exchange.patience.answer;
    let (queue_max, answer_max) = (QUEUE_MAX.min(patience), ANSWER_MAX.min(patience));
    let mut worst = None;
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.capabilities.pull) {
        let Ok(_permit) = timeout(queue_max, shared.gates.question(endpoint)).await else {
            return Err(OriginError::Busy { host: endpoint.authority() });
        };
        let asking = possible_len(shared, endpoint, (repository, asker), sought);
        let answer = timeout(answer_max, asking).await;
        let stalled =
            |_| Err(OriginError::Stalled { at: transport::shown(&endpoint.base), after: answer_max });
        match answer.unwrap_or_else(stalled) {
            Ok(len) => return Ok(len),
            Err(error) => worst = worse(worst, error),
        }
    }
    let why = "no host in its hosts.toml has the capability to pull".to_owned();
    Err(worst.unwrap_or_else(|| OriginError::NoEndpoint { host: repository.host.clone(), why }))
}

/// The length of a blob: by HEAD, or by a GET of its first byte where HEAD does not tell.
async fn blob_len(
    shared: &Shared,
    endpoint: &Endpoint,
    (repository, asker): (&Repository, &Asker),
    sought: &Sought,
) -> Result<u64, OriginError> {
    let _permit = shared.gates.question(endpoint).await;
    possible_len(shared, endpoint, (repository, asker), sought).await
}

/// What a blob can have.
async fn possible_len(
    shared: &Shared,
    endpoint: &Endpoint,
    (repository, asker): (&Repository, &Asker),
    sought: &Sought,
) -> Result<u64, OriginError> {
    let len = stated_len(shared, endpoint, (repository, asker), sought).await?;
    if len > BLOB_LEN_MAX {
        let at = endpoint.url(&format!("{}/{}", repository.path, sought.kind.path(&sought.digest)));
        return Err(OriginError::Answer {
            at: transport::shown(&at),
            what: "states a length that no blob has",
        });
    }
    Ok(len)
}

async fn stated_len(
    shared: &Shared,
    endpoint: &Endpoint,
    (repository, asker): (&Repository, &Asker),
    sought: &Sought,
) -> Result<u64, OriginError> {
    let (path, accept) = (sought.kind.path(&sought.digest), sought.kind.accept());
    let ask = |method, range| Question {
        method,
        repository: &repository.path,
        path: &path,
        accept: &accept,
        range,
        query: None,
        asker,
    };
    let answer = shared.exchange.ask(endpoint, &ask(Method::HEAD, None)).await?;
    if answer.status().is_success() {
        answer.is_registrys()?;
        if let Some(len) = answer.stated_len() {
            return Ok(len);
        }
    } else if !is_head_refused(&answer) {
        return Err(answer.refused(&shared.exchange.patience).await);
    }
    let answer = shared.exchange.ask(endpoint, &ask(Method::GET, Some("bytes=0-0"))).await?;
    answer.is_registrys()?;
    let at = answer.at.clone();
    let range = answer.headers().get(http::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let total = range.and_then(content_range).and_then(|(_, total)| total);
    let len = match answer.status() {
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => total,
        StatusCode::OK => answer.stated_len(),
        _ => return Err(answer.refused(&shared.exchange.patience).await),
    };
    len.ok_or(OriginError::Answer { at, what: "does not tell the length of the blob" })
}

/// Object stores sign an address for one method; some registries know no HEAD.
fn is_head_refused(answer: &Answer) -> bool {
    let status = answer.status();
    let unknown = matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED);
    unknown || (answer.foreign && matches!(status.as_u16(), 400 | 401 | 403))
}
