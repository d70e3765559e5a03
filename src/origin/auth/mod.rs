//! Who we are to a registry: one `Authorization` header for each endpoint and repository, renewed when it ages.
//!
//! Credentials are looked up by the endpoint that demands them, and shown to it and to the realm it names: Docker's
//! config first, then kubelet's credential providers.

mod challenge;
mod credentials;
mod providers;
mod token;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;

use super::{
    Lent, OriginError, Patience,
    endpoint::Endpoint,
    error::{Demand, Said},
    transport,
};
use challenge::{Challenge, challenge};
pub use credentials::Credential;
use credentials::Credentials;
use providers::Providers;
pub use providers::{ProviderError, ProviderFiles};

/// Sessions remembered: a node pulls from a few hundred repositories. Beyond it all are asked for again.
const MAX_SESSIONS: usize = 4096;

/// A header that proves who we are, and until when.
#[derive(Clone)]
pub(super) struct Header {
    value: HeaderValue,
    /// `None`: as long as it is accepted.
    until: Option<Instant>,
}

impl Header {
    fn is_good(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Whose session with an endpoint.
#[derive(Clone, Copy)]
pub(super) enum Whose<'a> {
    /// The node's own.
    Node,
    /// Somebody's to whom it does not lend its credentials.
    Stranger,
    /// Somebody's who has lent it his; the session is his as well.
    Lent(&'a Lent),
}

/// Who asks, and for what.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) repository: &'a str,
    pub(super) whose: Whose<'a>,
}

/// Held while a token is fetched, so that a crowd of readers fetches one.
pub(super) type Session = Arc<tokio::sync::Mutex<Option<Header>>>;

/// By endpoint, repository, and whether a stranger has it.
pub(super) type Sessions = Mutex<HashMap<(String, String, bool), Session>>;

/// Keeps the headers of all sessions.
pub(super) struct Auth {
    credentials: Credentials,
    providers: Providers,
    patience: Patience,
    sessions: Sessions,
}

impl Auth {
    /// # Errors
    /// The credential providers cannot be used.
    pub(super) fn new(
        docker_config: Option<PathBuf>,
        providers: Option<&ProviderFiles>,
        patience: Patience,
    ) -> Result<Self, ProviderError> {
        let credentials = Credentials::new(docker_config);
        let providers = providers.map_or_else(|| Ok(Providers::none()), Providers::load)?;
        Ok(Self { credentials, providers, patience, sessions: Sessions::default() })
    }

    /// The header that the endpoint took last time, if it is still good.
    pub(super) async fn header(&self, endpoint: &Endpoint, by: By<'_>) -> Option<HeaderValue> {
        let session = self.session(endpoint, by);
        let header = session.lock().await;
        header.as_ref().filter(|header| header.is_good(Instant::now())).map(|header| header.value.clone())
    }

    /// Meets the demand of a 401. `rejected` is what the refused request carried.
    ///
    /// # Errors
    /// A demand that cannot be met.
    pub(super) async fn meet(
        &self,
        endpoint: &Endpoint,
        by: By<'_>,
        demand: &HeaderMap,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, OriginError> {
        let session = self.session(endpoint, by);
        let mut header = session.lock().await;
        let renewed = header.as_ref().filter(|header| header.is_good(Instant::now()));
        if let Some(renewed) = renewed.filter(|header| Some(&header.value) != rejected) {
            return Ok(renewed.value.clone());
        }
        *header = None;
        let fetched = self.fetch(endpoint, by, challenge(demand)).await?;
        Ok(header.insert(fetched).value.clone())
    }

    /// What this node has for a repository of an endpoint. Providers know registries and not their mirrors.
    pub(super) async fn login(&self, endpoint: &Endpoint, repository: &str) -> Option<Credential> {
        let filed = self.credentials.find(&endpoint.authority()).await;
        if filed.is_some() || !endpoint.is_registry {
            return filed;
        }
        self.providers.find(&format!("{}/{repository}", endpoint.registry)).await
    }

    async fn fetch(
        &self,
        endpoint: &Endpoint,
        By { repository, whose }: By<'_>,
        challenge: Option<Challenge>,
    ) -> Result<Header, OriginError> {
        let refused = |why: &str| OriginError::Unauthorized {
            at: transport::shown(&endpoint.base),
            status: 401,
            said: Said(why.to_owned()),
            demand: Demand::default(),
        };
        let credential = match whose {
            Whose::Node => Box::pin(self.login(endpoint, repository)).await,
            Whose::Stranger => None,
            Whose::Lent(lent) => endpoint.is_registry.then(|| lent.credential.clone()),
        };
        match challenge {
            None => Err(refused("it demands a scheme other than Bearer and Basic")),
            Some(Challenge::Basic) => {
                let value = credential.as_ref().and_then(token::basic);
                let value = value.ok_or_else(|| refused("it demands a password and was shown none"))?;
                Ok(Header { value, until: None })
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
                let stranger = matches!(whose, Whose::Stranger);
                let wish =
                    token::Wish { realm: &realm, service: service.as_deref(), scope: &scope, stranger };
                token::fetch(endpoint, &wish, credential.as_ref(), &self.patience).await
            }
        }
    }

    fn session(&self, endpoint: &Endpoint, By { repository, whose }: By<'_>) -> Session {
        let (sessions, stranger) = match whose {
            Whose::Node => (&self.sessions, false),
            Whose::Stranger => (&self.sessions, true),
            Whose::Lent(lent) => (&lent.sessions, false),
        };
        let mut sessions = sessions.lock();
        if sessions.len() >= MAX_SESSIONS {
            sessions.clear();
        }
        sessions.entry((endpoint.base.to_string(), repository.to_owned(), stranger)).or_default().clone()
    }
}
