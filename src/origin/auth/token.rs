//! Tokens: asked for at the realm that the registry names, with what `config.json` has for the registry
//! (distribution's `docs/spec/auth/token.md` and `oauth.md`).

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, Request, header};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::{Credential, Header};
use crate::origin::{
    OriginError, Patience,
    endpoint::Endpoint,
    tls::{Outgoing, whole},
    transport::{self, Answer},
};

/// Largest answer taken. Tokens of large registries reach 8 KiB.
const MAX_TOKEN_ANSWER_LEN: usize = 128 << 10;

/// Lifetime of a token whose answer states none (token.md).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// Longest lifetime believed: an hour of trust in somebody else's clock arithmetic is enough.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// What is asked for.
pub(super) struct Wish<'a> {
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
    /// For somebody to whom the node lends neither credentials nor certificate.
    pub(super) stranger: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Asks for a token.
///
/// # Errors
/// A realm that must not be asked, an answer that is no token, whatever the connection gives.
pub(super) async fn fetch(
    endpoint: &Endpoint,
    wish: &Wish<'_>,
    credential: Option<&Credential>,
    patience: &Patience,
) -> Result<Header, OriginError> {
    let url = realm_url(endpoint, wish)?;
    let at = transport::shown(&url);
    let request = request(url.clone(), wish, credential)
        .ok_or_else(|| OriginError::Answer { at: at.clone(), what: "its token realm cannot be asked" })?;
    let client =
        if endpoint.owns(&url) && !wish.stranger { &endpoint.clients.own } else { &endpoint.clients.abroad };
    let response = transport::send(client, request, &at, patience).await?;
    let answer = Answer { response, at, foreign: false };
    if !answer.response.status().is_success() {
        return Err(answer.refused(patience).await);
    }
    let at = answer.at.clone();
    let bytes = answer.read(MAX_TOKEN_ANSWER_LEN, patience).await?;
    header(&bytes, Instant::now()).ok_or(OriginError::Answer { at, what: "its answer holds no token" })
}

/// The realm, unless asking it would show credentials to the network.
fn realm_url(endpoint: &Endpoint, wish: &Wish<'_>) -> Result<Url, OriginError> {
    let refuse = |what| OriginError::Answer { at: transport::shown(&endpoint.base), what };
    let url = endpoint.base.join(wish.realm).map_err(|_| refuse("its token realm is no address"))?;
    let over_tls = url.scheme() == "https";
    let plain = url.scheme() == "http" && endpoint.base.scheme() == "http" && endpoint.plain_allowed(&url);
    if url.host_str().is_none() || !(over_tls || plain) {
        return Err(refuse("its token realm is plain HTTP, which nobody allowed"));
    }
    Ok(url)
}

fn request(mut url: Url, wish: &Wish<'_>, credential: Option<&Credential>) -> Option<Request<Outgoing>> {
    let service = wish.service.unwrap_or_default();
    let mut builder = Request::builder().header(header::ACCEPT, "application/json");
    let body = match credential {
        Some(Credential::IdentityToken(token)) => {
            builder = builder
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("service", service)
                .append_pair("client_id", "flotilla")
                .append_pair("scope", wish.scope)
                .append_pair("refresh_token", token);
            form.finish()
        }
        Some(Credential::Password { .. }) | None => {
            let mut query = url.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            query.append_pair("scope", wish.scope);
            drop(query);
            if let Some(basic) = credential.and_then(basic) {
                builder = builder.header(header::AUTHORIZATION, basic);
            }
            String::new()
        }
    };
    builder.uri(url.as_str()).body(whole(body)).ok()
}

/// `Basic …` for a user and password.
pub(super) fn basic(credential: &Credential) -> Option<HeaderValue> {
    match credential {
        Credential::Password { user, password } => {
            secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        }
        Credential::IdentityToken(_) => None,
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn header(bytes: &[u8], now: Instant) -> Option<Header> {
    let answer: TokenAnswer = serde_json::from_slice(bytes).ok()?;
    let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = filled(answer.token).or_else(|| filled(answer.access_token))?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(MAX_LIFE);
    // `issued_at` is their clock; ours starts when the answer is here. A tenth is kept back for the way.
    let until = now + life.mul_f64(0.9);
    Some(Header { value: secret(&format!("Bearer {token}"))?, until: Some(until) })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const WISH: Wish<'_> = Wish {
        realm: "https://auth/token",
        service: Some("reg istry"),
        scope: "repository:a/b:pull",
        stranger: false,
    };

    #[test]
    fn tokens_come_under_two_names_and_age() {
        let now = Instant::now();
        let parsed = |text: &str| header(text.as_bytes(), now);
        let token = parsed(r#"{"token":"abc","expires_in":100}"#).unwrap();
        assert_eq!(token.value, "Bearer abc");
        assert!(token.value.is_sensitive());
        assert_eq!(token.until, Some(now + Duration::from_secs(90)));
        assert_eq!(parsed(r#"{"access_token":"x"}"#).unwrap().until, Some(now + Duration::from_secs(54)));
        let endless = parsed(r#"{"token":"","access_token":"x","expires_in":18446744073709551615}"#).unwrap();
        assert_eq!(endless.until, Some(now + Duration::from_secs(3240)));
        for text in ["{}", r#"{"token":""}"#, "<html>", r#"{"token":"line\nbreak"}"#] {
            assert!(parsed(text).is_none(), "{text}");
        }
    }

    #[test]
    fn passwords_travel_in_the_header_only() {
        let credential = Credential::Password { user: "me".into(), password: "pw".into() };
        let request = request(WISH.realm.parse().unwrap(), &WISH, Some(&credential)).unwrap();
        assert_eq!(request.uri(), "https://auth/token?service=reg+istry&scope=repository%3Aa%2Fb%3Apull");
        assert_eq!(request.headers()[header::AUTHORIZATION], "Basic bWU6cHc=");
        assert!(request.headers()[header::AUTHORIZATION].is_sensitive());
    }

    #[tokio::test]
    async fn identity_tokens_travel_in_the_body_only() {
        let credential = Credential::IdentityToken("id&tok".into());
        let request = request(WISH.realm.parse().unwrap(), &WISH, Some(&credential)).unwrap();
        assert_eq!((request.method(), request.uri().query()), (&Method::POST, None));
        assert!(!request.headers().contains_key(header::AUTHORIZATION));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            body.contains("grant_type=refresh_token") && body.contains("refresh_token=id%26tok"),
            "{body}"
        );
    }
}
