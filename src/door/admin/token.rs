//! Who may order something over HTTP: whoever shows the token that a file holds.

use std::{io, path::Path};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::Parts;

/// Longest token file read.
const TOKEN_LEN_MAX: usize = 4096;

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {TOKEN_LEN_MAX} bytes")]
    TooLong,
}

/// Lets a request through that carries the token, as `Authorization: Bearer …`. The file is read for each, so that
/// another token counts at once.
pub(super) async fn guard(State(parts): State<Parts>, request: Request, next: Next) -> Response {
    let Some(file) = parts.token_file else {
        let off = "orders over HTTP are off: admin.token_file names no file with a token\n";
        return (StatusCode::FORBIDDEN, off).into_response();
    };
    let shown = bearer(request.headers()).map(str::to_owned);
    let path = file.clone();
    let token = tokio::task::spawn_blocking(move || read(&path)).await.expect("reading does not panic");
    match token {
        Ok(token) if shown.is_some_and(|shown| is_same(&shown, &token)) => next.run(request).await,
        Ok(_) => {
            let demand = [(header::WWW_AUTHENTICATE, "Bearer realm=\"flotilla\"")];
            (StatusCode::UNAUTHORIZED, demand, "the token of admin.token_file is wanted\n").into_response()
        }
        Err(error) => {
            let why = crate::pull::chain_of(&error);
            tracing::error!(file = %file.display(), "admin.token_file: {why}");
            let say = format!("admin.token_file is unusable: {why}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, say).into_response()
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn read(path: &Path) -> Result<String, TokenError> {
    use io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(TokenError::Read)?;
    file.take(TOKEN_LEN_MAX as u64 + 1).read_to_string(&mut text).map_err(TokenError::Read)?;
    if text.len() > TOKEN_LEN_MAX {
        return Err(TokenError::TooLong);
    }
    let token = text.trim();
    if token.is_empty() { Err(TokenError::Empty) } else { Ok(token.to_owned()) }
}

/// Takes the same time wherever they differ: BLAKE3's digests are compared so.
fn is_same(shown: &str, token: &str) -> bool {
    blake3::hash(shown.as_bytes()) == blake3::hash(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_the_file_holds_without_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let held = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        assert_eq!(held(" secret\n").unwrap(), "secret");
        assert!(matches!(held("\n"), Err(TokenError::Empty)));
        assert!(matches!(held(&"x".repeat(5000)), Err(TokenError::TooLong)));
        assert!(matches!(read(&dir.path().join("none")), Err(TokenError::Read(_))));
        assert!(is_same("secret", "secret") && !is_same("secre", "secret") && !is_same("", "secret"));
    }

    #[test]
    fn only_a_bearer_carries_a_token() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, text.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("bearer  a.b=").as_deref(), Some("a.b="));
        assert_eq!(of("Basic a"), None);
        assert_eq!(of("a"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
