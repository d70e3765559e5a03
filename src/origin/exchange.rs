//! A question to one endpoint: signed in, and followed through its redirects.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use url::Url;

use super::{
    Asker, OriginError, Patience,
    auth::{Auth, By},
    endpoint::Endpoint,
    redirect::{self, RedirectError},
    tls::{Outgoing, whole},
    transport::{self, Answer},
};

/// What is asked, below the root of the API.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a str,
    /// Such as `blobs/sha256:…`, below the repository.
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// `Range`, as it is sent.
    pub(super) range: Option<&'a str>,
    /// Such as `n=100`, without the question mark.
    pub(super) query: Option<&'a str>,
    pub(super) asker: &'a Asker,
}

/// Asks endpoints.
pub(super) struct Exchange {
    pub(super) auth: Auth,
    pub(super) patience: Patience,
}

impl Exchange {
    pub(super) fn new(auth: Auth, patience: Patience) -> Self {
        Self { auth, patience }
    }

    /// Asks once; a demand for credentials is met once. Any other status is the caller's.
    pub(super) async fn ask(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
    ) -> Result<Answer, OriginError> {
        if let Some(pass) = question.asker.pass_for(endpoint) {
            // What it says to a client's own credentials is for the client.
            return self.follow(endpoint, question, Some(pass)).await;
        }
        let by = By { repository: question.repository, whose: question.asker.whose() };
        let known = self.auth.header(endpoint, by).await;
        let answer = self.follow(endpoint, question, known.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || answer.foreign {
            return Ok(answer);
        }
        let met = Box::pin(self.auth.meet(endpoint, by, answer.headers(), known.as_ref()));
        let header = met.await.map_err(|error| error.with_demand(answer.headers()))?;
        self.follow(endpoint, question, Some(&header)).await
    }

    /// Follows redirects. Whatever belongs to the endpoint stays behind on the first hop to another host; and what of it
    /// is the node's, headers and certificate, is shown for no client.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, OriginError> {
        let mut url = endpoint.url(&format!("{}/{}", question.repository, question.path));
        if let Some(query) = question.query {
            let namespace = url.query().map(|namespace| format!("&{namespace}")).unwrap_or_default();
            url.set_query(Some(&format!("{query}{namespace}")));
        }
        let mut foreign = false;
        for _ in 0..=redirect::MAX_HOPS {
            let at = transport::shown(&url);
            let lent = !foreign && !question.asker.is_client();
            let headers = lent.then_some(&endpoint.headers);
            let request = request(&url, question, headers, authorization.filter(|_| !foreign));
            let request =
                request.ok_or_else(|| OriginError::Answer { at: at.clone(), what: "no address to ask" })?;
            let client = if lent { &endpoint.clients.own } else { &endpoint.clients.abroad };
            let response = transport::send(client, request, &at, &self.patience).await?;
            let answer = Answer { response, at, foreign };
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let refused = |source| OriginError::Redirects { at: answer.at.clone(), source };
            let hop = redirect::next_hop(&url, location.unwrap_or_default(), |to| endpoint.plain_allowed(to));
            let hop = match location {
                Some(_) => hop.map_err(refused)?,
                None => return Err(refused(RedirectError::NoAddress)),
            };
            foreign |= hop.foreign;
            url = hop.url;
        }
        Err(OriginError::Redirects { at: transport::shown(&url), source: RedirectError::TooMany })
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// `None` for an address that HTTP cannot carry.
fn request(
    url: &Url,
    question: &Question<'_>,
    own: Option<&HeaderMap>,
    authorization: Option<&HeaderValue>,
) -> Option<Request<Outgoing>> {
    let mut request = Request::builder().method(question.method.clone()).uri(url.as_str());
    let headers = request.headers_mut()?;
    if let Some(own) = own {
        headers.extend(own.clone());
    }
    if let Some(authorization) = authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(header::ACCEPT, HeaderValue::from_str(question.accept).ok()?);
    if let Some(range) = question.range {
        headers.insert(header::RANGE, HeaderValue::from_str(range).ok()?);
    }
    request.body(whole(Bytes::new())).ok()
}

/// Names us in the registry's log.
const USER_AGENT: &str = concat!("flotilla/", env!("CARGO_PKG_VERSION"));
