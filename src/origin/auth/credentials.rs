//! Docker's `config.json`: `auths`, `credHelpers`, `credsStore`. Read and run on blocking threads.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use parking_lot::Mutex;

/// How long an answer is kept. Helpers of clouds hand out passwords that live for hours; a `docker login` shall
/// count soon.
const KEEP: Duration = Duration::from_secs(60);

/// A helper that asks a cloud takes a second or two; one that asks a person never ends.
const HELPER_DEADLINE: Duration = Duration::from_secs(20);

/// Hosts remembered; beyond it all are looked up again.
const MAX_HOSTS: usize = 1024;

/// What a registry is shown. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Password { user: String, password: String },
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

impl Credential {
    /// `user:password` in base64, as Basic sends it.
    #[must_use]
    pub fn from_login(encoded: &str) -> Option<Self> {
        let login = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (user, password) = login.split_once(':')?;
        Some(Self::Password { user: user.to_owned(), password: password.to_owned() })
    }
}

/// Looks credentials up by the host that asks for them.
pub(super) struct Credentials {
    config: Option<PathBuf>,
    known: Mutex<HashMap<String, (Option<Credential>, Instant)>>,
}

impl Credentials {
    pub(super) fn new(config: Option<PathBuf>) -> Self {
        Self { config, known: Mutex::default() }
    }

    /// What the config file or a helper has for `authority`; without any we ask as a stranger.
    pub(super) async fn find(&self, authority: &str) -> Option<Credential> {
        let config = self.config.clone()?;
        let fresh = |known: &&(Option<Credential>, Instant)| known.1.elapsed() < KEEP;
        if let Some((credential, _)) = self.known.lock().get(authority).filter(fresh) {
            return credential.clone();
        }
        let asked = authority.to_owned();
        let looking = tokio::task::spawn_blocking(move || look_up(&config, &asked));
        let Ok(Ok(found)) = tokio::time::timeout(HELPER_DEADLINE, looking).await else {
            tracing::warn!(
                registry = authority,
                "the credential helper does not answer; asking without credentials"
            );
            return None;
        };
        let mut known = self.known.lock();
        if known.len() >= MAX_HOSTS {
            known.clear();
        }
        known.insert(authority.to_owned(), (found.clone(), Instant::now()));
        found
    }
}

/// The names under which `docker login` and helpers file a host.
fn filed_under(authority: &str) -> Vec<&str> {
    match authority {
        "registry-1.docker.io" => vec!["https://index.docker.io/v1/", "docker.io", authority],
        _ => vec![authority],
    }
}

fn look_up(config: &Path, authority: &str) -> Option<Credential> {
    let text = match std::fs::read(config) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %config.display(), %error, "cannot read registry.docker_config");
            return None;
        }
    };
    for server in filed_under(authority) {
        match docker_credential::get_credential_from_reader(text.as_slice(), server) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Some(Credential::Password { user, password });
            }
            Ok(DockerCredential::IdentityToken(token)) => return Some(Credential::IdentityToken(token)),
            Err(error) => complain(config, server, &error),
        }
    }
    None
}

/// A helper's own output is left out: it may hold what it was asked for.
fn complain(config: &Path, server: &str, error: &CredentialRetrievalError) {
    let why = match error {
        CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound => return,
        // The words of the helpers' protocol for "none" (docker-credential-helpers, credentials/error.go).
        CredentialRetrievalError::HelperFailure { stdout, .. }
            if stdout.contains("credentials not found") =>
        {
            return;
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => format!("{helper} failed"),
        CredentialRetrievalError::HelperCommunicationError => {
            "its credential helper cannot be run".to_owned()
        }
        CredentialRetrievalError::MalformedHelperResponse => {
            "its credential helper answered nonsense".to_owned()
        }
        CredentialRetrievalError::CredentialDecodingError => {
            "its `auth` is not base64 of `user:password`".to_owned()
        }
        CredentialRetrievalError::CredentialMismatchError => {
            "its `auth` differs from `username` and `password`".to_owned()
        }
        CredentialRetrievalError::ConfigReadError => "it is not Docker's JSON".to_owned(),
    };
    tracing::warn!(file = %config.display(), registry = server, "no credentials: {why}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(user: &str, password: &str) -> String {
        STANDARD.encode(format!("{user}:{password}"))
    }

    async fn found(config: &str, authority: &str) -> Option<Credential> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        Credentials::new(Some(path)).find(authority).await
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), password: password.into() })
    }

    #[tokio::test]
    async fn a_host_gets_its_own_credentials_and_no_others() {
        let config = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"r.local:5000":{{"auth":"{}"}},
            "t.local":{{"identitytoken":"tok"}}}}}}"#,
            auth("hub", "a:b"),
            auth("me", "secret")
        );
        assert_eq!(found(&config, "registry-1.docker.io").await, password("hub", "a:b"));
        assert_eq!(found(&config, "r.local:5000").await, password("me", "secret"));
        assert_eq!(found(&config, "t.local").await, Some(Credential::IdentityToken("tok".into())));
        assert_eq!(found(&config, "r.local").await, None);
        assert_eq!(found("not json", "r.local").await, None);
        assert_eq!(Credentials::new(None).find("r.local").await, None);
        assert_eq!(Credentials::new(Some("/nonexistent/config.json".into())).find("r.local").await, None);
    }

    #[tokio::test]
    async fn a_helper_that_cannot_be_run_costs_only_the_credentials() {
        let config = r#"{"credHelpers":{"r.local":"flotilla-test-no-such-helper"}}"#;
        assert_eq!(found(config, "r.local").await, None);
    }

    #[test]
    fn credentials_are_never_printed() {
        let printed = format!("{:?}", password("me", "secret"));
        assert!(!printed.contains("secret") && !printed.contains("me\""), "{printed}");
    }
}
