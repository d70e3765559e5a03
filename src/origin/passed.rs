//! A client's own question, passed on to the registry that it is for: tags, digests, lists, referrers.
//!
//! Nothing is believed of the answer but what the client itself could check: a document that is asked for by its
//! digest has these bytes.

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use tokio::time::sleep;

use super::{
    Asker, OriginError, Patience, Shared,
    endpoint::Endpoint,
    exchange::Question,
    rounds::{Rounds, Step},
    transport::Answer,
};
use crate::oci::{Algorithm, Digest, MAX_DOCUMENT_LEN, Repository};

/// Times that every endpoint is asked: somebody waits for the answer, and asks again by himself.
const ROUNDS: u32 = 2;

/// What a client asks.
#[derive(Clone, Debug)]
pub struct Passed {
    pub repository: Repository,
    /// GET, or HEAD.
    pub method: Method,
    /// Below the repository: `manifests/latest`, `tags/list`.
    pub path: String,
    /// Without the question mark, and without `ns`.
    pub query: Option<String>,
    pub accept: String,
    pub asker: Asker,
    /// What the answer's bytes must have, where the question names it.
    pub digest: Option<Digest>,
}

/// What the registry answered.
#[derive(Clone, Debug)]
pub struct Told {
    pub media_type: Option<String>,
    /// As the registry states it; of a body that came, as it is.
    pub digest: Option<Digest>,
    /// Of the body, or of what a GET would give.
    pub len: Option<u64>,
    /// Where a list goes on.
    pub link: Option<String>,
    /// Empty for HEAD.
    pub bytes: Bytes,
}

/// Asks the endpoints of the question's registry, one after the other.
pub(super) async fn ask(shared: &Shared, question: &Passed) -> Result<Told, OriginError> {
    let endpoints = shared.book.endpoints(&question.repository.host).await?;
    let needs_resolve = question.digest.is_none();
    let able = |endpoint: &&std::sync::Arc<Endpoint>| {
        endpoint.capabilities.pull && (endpoint.capabilities.resolve || !needs_resolve)
    };
    let able: Vec<_> = endpoints.iter().filter(able).cloned().collect();
    let mut rounds = Rounds::new(able, Patience { rounds: ROUNDS, ..shared.exchange.patience.clone() });
    loop {
        match rounds.next(rand::random()) {
            Some(Step::Ask(endpoint)) => match Box::pin(ask_one(shared, &endpoint, question)).await {
                Ok(told) => return Ok(told),
                Err(error) => rounds.failed(error),
            },
            Some(Step::Wait(wait)) => sleep(wait).await,
            Some(Step::Over(error)) => return Err(error),
            None => {
                let why = "no host in its hosts.toml has the capability to pull and resolve".to_owned();
                return Err(OriginError::NoEndpoint { host: question.repository.host.clone(), why });
            }
        }
    }
}

async fn ask_one(shared: &Shared, endpoint: &Endpoint, passed: &Passed) -> Result<Told, OriginError> {
    let _permit = shared.gates.question(endpoint).await;
    let patience = &shared.exchange.patience;
    let question = Question {
        method: passed.method.clone(),
        repository: &passed.repository.path,
        path: &passed.path,
        accept: &passed.accept,
        range: None,
        query: passed.query.as_deref(),
        asker: &passed.asker,
    };
    let answer = shared.exchange.ask(endpoint, &question).await?;
    if !answer.status().is_success() {
        return Err(answer.refused(patience).await);
    }
    answer.is_registrys()?;
    let mut told = told(&answer);
    if passed.method == Method::HEAD {
        return Ok(told);
    }
    let at = answer.at.clone();
    told.bytes = answer.read(MAX_DOCUMENT_LEN, patience).await?;
    shared.account(told.bytes.len()).await;
    told.len = Some(told.bytes.len() as u64);
    let expected = passed.digest.clone().or(told.digest);
    let actual = Digest::of(expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm), &told.bytes);
    match expected {
        Some(expected) if expected != actual => Err(OriginError::WrongDigest { at, expected, actual }),
        Some(_) | None => Ok(Told { digest: Some(actual), ..told }),
    }
}

fn told(answer: &Answer) -> Told {
    let headers = answer.headers();
    Told {
        media_type: text(headers, header::CONTENT_TYPE.as_str()),
        digest: text(headers, "docker-content-digest").and_then(|digest| digest.parse().ok()),
        len: answer.stated_len(),
        link: text(headers, header::LINK.as_str()),
        bytes: Bytes::new(),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
