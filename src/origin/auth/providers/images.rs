//! Which images are meant by `*.dkr.ecr.*.amazonaws.com`, `registry.io:8080/path` and the like. Pure.
//!
//! kubelet's rules (`pkg/credentialprovider/keyring.go`): as many parts between dots, each like its counterpart; the same
//! port, or none on both sides; the path a prefix, letter by letter.

use std::collections::BTreeMap;

use super::super::Credential;

/// The key of Docker's hub, and the names by which images of it are known.
const HUB_KEY: &str = "index.docker.io";

/// A pattern, or an image that is held against one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern<'a> {
    parts: Vec<&'a str>,
    port: &'a str,
    path: &'a str,
}

impl<'a> Pattern<'a> {
    /// `None` for what has no host.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let path_at = text.find('/').unwrap_or(text.len());
        let (host, path) = text.split_at(path_at);
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port),
            _ => (host, ""),
        };
        let known = |c: char| c.is_ascii_alphanumeric() || "*-_.[]:".contains(c);
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        if name.is_empty() || !name.chars().all(known) || !is_port || path.contains(['?', '#', ' ']) {
            return None;
        }
        Some(Self { parts: name.split('.').collect(), port, path })
    }

    pub(super) fn matches(&self, image: &Pattern<'_>) -> bool {
        self.port == image.port
            && self.parts.len() == image.parts.len()
            && image.path.starts_with(self.path)
            && self.parts.iter().zip(&image.parts).all(|(glob, part)| is_like(part, glob))
    }
}

/// Whether `text` is like `glob`, in which each `*` stands for any run of characters.
fn is_like(text: &str, glob: &str) -> bool {
    let mut pieces = glob.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// The keys of several answers.
#[derive(Default)]
pub(super) struct Keyring(BTreeMap<String, Credential>);

impl Keyring {
    /// Of two answers for one key the earlier counts.
    pub(super) fn add(&mut self, logins: &BTreeMap<String, Credential>) {
        for (key, credential) in logins {
            self.0.entry(without_scheme(key)).or_insert_with(|| credential.clone());
        }
    }

    /// What belongs to `image`: of several keys that match, the last in the order of bytes, so that longer ones come
    /// before their beginnings.
    pub(super) fn look_up(&self, image: &str) -> Option<Credential> {
        let wanted = Pattern::parse(image)?;
        let matching = |key: &&String| Pattern::parse(key).is_some_and(|pattern| pattern.matches(&wanted));
        let best = self.0.keys().rev().find(matching);
        let hub = || (registry_is_hub(image)).then(|| HUB_KEY.to_owned());
        self.0.get(&best.cloned().or_else(hub)?).cloned()
    }
}

fn registry_is_hub(image: &str) -> bool {
    image.split_once('/').is_some_and(|(registry, _)| matches!(registry, "docker.io" | HUB_KEY))
}

/// A key as images are named: Docker's own keys have a scheme, and the version of the API at the end.
fn without_scheme(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let path = match path.get(..4) {
        Some("/v1/" | "/v2/") => &path[3..],
        Some(_) | None => path,
    };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, image: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Pattern::parse(image).unwrap())
    }

    /// The cases of kubelet's own tests and documentation, in our words.
    #[test]
    fn patterns_mean_what_kubelet_means() {
        for (pattern, image, wanted) in [
            (
                "123456789.dkr.ecr.us-east-1.amazonaws.com",
                "123456789.dkr.ecr.us-east-1.amazonaws.com/a",
                true,
            ),
            ("*.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/a", true),
            ("*.azurecr.io", "team.azurecr.io/a/b", true),
            ("*.azurecr.io", "azurecr.io/a", false),
            ("*.io", "a.k8s.io/x", false),
            ("k8s.*.io", "k8s.gcr.io/x", true),
            ("app*.k8s.io", "app-1.k8s.io/x", true),
            ("app*.k8s.io", "other.k8s.io/x", false),
            ("*a*b.io", "xaybb.io/x", true),
            ("*a*b.io", "xb.io/x", false),
            ("registry.io:8080/path", "registry.io:8080/path/app", true),
            ("registry.io:8080/path", "registry.io:8080/pathology", true),
            ("registry.io:8080/path", "registry.io/path", false),
            ("registry.io", "registry.io:8080/path", false),
            ("registry.io/a", "registry.io/b", false),
            ("*.*.registry.io", "a.b.registry.io/x", true),
            ("127.0.0.1:5000", "127.0.0.1:5000/x", true),
            ("127.0.0.1", "127.0.0.1:5000/x", false),
        ] {
            assert_eq!(matches(pattern, image), wanted, "{pattern} {image}");
        }
        for nonsense in ["", "/path", "r.io:port/x", "r io"] {
            assert!(Pattern::parse(nonsense).is_none(), "{nonsense}");
        }
    }

    #[test]
    fn the_most_specific_key_and_the_earlier_answer_count() {
        let login = |user: &str| Credential::Password { user: user.into(), password: "p".into() };
        let answer = |keys: &[(&str, &str)]| -> BTreeMap<String, Credential> {
            keys.iter().map(|(key, user)| ((*key).to_owned(), login(user))).collect()
        };
        let mut keyring = Keyring::default();
        keyring.add(&answer(&[
            ("r.io", "all"),
            ("r.io/team", "team"),
            ("https://index.docker.io/v1/", "hub"),
        ]));
        keyring.add(&answer(&[("r.io", "late"), ("*.local", "glob")]));
        for (image, user) in [
            ("r.io/team/app", Some("team")),
            ("r.io/other", Some("all")),
            ("q.local/other", Some("glob")),
            ("docker.io/library/debian", Some("hub")),
            ("q.example/a", None),
        ] {
            assert_eq!(keyring.look_up(image), user.map(login), "{image}");
        }
    }
}
