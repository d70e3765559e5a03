//! kubelet's credential-provider plugins (KEP 2133): programs that know the registries of a cloud.
//!
//! ```text
//!   image ── matchImages of each provider ──▶ cache by image, registry, global ──▶ the program: request in, answer out
//!                                                                                        │
//!   credential ◀── the most specific key that matches the image ◀── keys of all answers ─┘
//! ```
//! As kubelet does it (kubernetes `pkg/credentialprovider`), with the same file and the same folder, and for the same
//! name: the repository without tag and digest. A provider is asked only once a registry has demanded credentials and
//! Docker's config has none. What kubelet has and a node without pods has not is a service account's token.

mod config;
mod images;
mod run;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub use self::config::ProviderError;
use self::{
    config::Provider,
    images::Keyring,
    run::{Answer, CacheKey},
};
use super::Credential;

/// Answers kept; beyond it all are asked for again. A node's images come from a few hundred repositories.
const KEPT_MAX: usize = 1024;

/// Where kubelet has its providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderFiles {
    /// `--image-credential-provider-config`: a file, or a folder of them.
    pub config: PathBuf,
    /// `--image-credential-provider-bin-dir`.
    pub bin_dir: PathBuf,
}

/// What an answer counts for: the provider's place in the file, and an image, a registry, or everything.
type Key = (usize, Option<String>);

/// What an answer gave: user and password by key.
type Logins = Arc<BTreeMap<String, Credential>>;

/// Asks providers, and remembers what they said for as long as they said.
pub(super) struct Providers {
    providers: Vec<Provider>,
    kept: Mutex<HashMap<Key, (Logins, Instant)>>,
}

impl Providers {
    /// Nobody to ask.
    pub(super) fn none() -> Self {
        Self { providers: Vec::new(), kept: Mutex::default() }
    }

    /// # Errors
    /// The file cannot be used, or a program of it is not there.
    pub(super) fn load(files: &ProviderFiles) -> Result<Self, ProviderError> {
        Ok(Self { providers: config::load(files)?, kept: Mutex::default() })
    }

    /// What the providers have for an image, named as kubelet names it: `host/path`.
    pub(super) async fn find(&self, image: &str) -> Option<Credential> {
        let mut keyring = Keyring::default();
        for (place, provider) in self.providers.iter().enumerate() {
            if provider.matches(image) {
                let logins = self.logins(place, provider, image).await;
                keyring.add(&logins);
            }
        }
        keyring.look_up(image)
    }

    async fn logins(&self, place: usize, provider: &Provider, image: &str) -> Logins {
        if let Some(known) = self.known(place, image, Instant::now()) {
            return known;
        }
        match run::ask(provider, image).await {
            Ok(answer) => self.keep(place, provider, image, answer),
            Err(error) => {
                let (provider, why) = (&provider.name, chain_of(&error));
                tracing::warn!(provider, image, "no credentials of a credential provider: {why}");
                Logins::default()
            }
        }
    }

    fn known(&self, place: usize, image: &str, now: Instant) -> Option<Logins> {
        let kept = self.kept.lock();
        let keys = [Some(image.to_owned()), Some(registry_of(image).to_owned()), None];
        let fresh = |key| kept.get(&(place, key)).filter(|(_, until)| now < *until);
        keys.into_iter().find_map(fresh).map(|(logins, _)| logins.clone())
    }

    fn keep(&self, place: usize, provider: &Provider, image: &str, answer: Answer) -> Logins {
        let logins = Arc::new(answer.logins);
        let life = answer.cache_duration.unwrap_or(provider.default_cache_duration);
        // A life beyond what a clock can add is none.
        if let Some(until) = Instant::now().checked_add(life).filter(|_| life > Duration::ZERO) {
            let key = match answer.cache_key {
                CacheKey::Image => Some(image.to_owned()),
                CacheKey::Registry => Some(registry_of(image).to_owned()),
                CacheKey::Global => None,
            };
            let mut kept = self.kept.lock();
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
            kept.insert((place, key), (logins.clone(), until));
        }
        logins
    }
}

fn registry_of(image: &str) -> &str {
    image.split_once('/').map_or(image, |(registry, _)| registry)
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    /// A provider that counts its calls in `calls` and answers with `answer`, in which `N` is the count.
    struct Lab {
        dir: tempfile::TempDir,
        providers: Providers,
    }

    impl Lab {
        fn new(match_images: &str, answer: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let script = format!(
                "#!/bin/sh\ncd {}\ncat >>asked\necho >>asked\necho \"$SALT $*\" >>calls\nN=$(wc -l <calls)\ncat <<END\n{answer}\nEND\n",
                dir.path().display()
            );
            put(&dir.path().join("bin/test"), &script);
            let config = format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n  - name: test\n    apiVersion: credentialprovider.kubelet.k8s.io/v1\n    matchImages: {match_images}\n    defaultCacheDuration: 1h0m0s\n    args: [get-credentials, --fast]\n    env:\n      - name: SALT\n        value: pepper\n"
            );
            let files =
                ProviderFiles { config: dir.path().join("config.yaml"), bin_dir: dir.path().join("bin") };
            fs::write(&files.config, config).unwrap();
            let providers = Providers::load(&files).unwrap();
            Self { dir, providers }
        }

        fn calls(&self) -> usize {
            let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            assert!(calls.lines().all(|line| line == "pepper get-credentials --fast"), "{calls}");
            calls.lines().count()
        }

        async fn password(&self, image: &str) -> Option<String> {
            match self.providers.find(image).await? {
                Credential::Password { user, password } => Some(format!("{user}:{password}")),
                Credential::IdentityToken(_) => panic!("providers give passwords"),
            }
        }
    }

    fn put(path: &Path, script: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn answer(cache: &str, auth: &str) -> String {
        format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",{cache}"auth":{auth}}}"#
        )
    }

    #[tokio::test]
    async fn the_program_is_asked_as_kubelet_asks_it() {
        let lab = Lab::new(
            r#"["*.r.example"]"#,
            &answer(r#""cacheKeyType":"Image","#, r#"{"*.r.example":{"username":"u$N","password":"p"}}"#),
        );
        assert_eq!(lab.password("a.r.example/team/app").await.as_deref(), Some("u1:p"));
        assert_eq!(lab.password("other.example/team/app").await, None);
        assert_eq!(lab.calls(), 1, "only who matches is asked");
        let asked = fs::read_to_string(lab.dir.path().join("asked")).unwrap();
        let asked: serde_json::Value = serde_json::from_str(&asked).unwrap();
        assert_eq!(
            asked,
            serde_json::json!({
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "kind": "CredentialProviderRequest",
                "image": "a.r.example/team/app",
            })
        );
    }

    #[tokio::test]
    async fn answers_are_kept_by_image_by_registry_or_for_all() {
        for (cache_key, calls) in
            [("Image", [1, 1, 2, 3]), ("Registry", [1, 1, 1, 2]), ("Global", [1, 1, 1, 1])]
        {
            let cache = format!(r#""cacheKeyType":"{cache_key}","cacheDuration":"10m","#);
            let lab = Lab::new(
                r#"["*.example"]"#,
                &answer(&cache, r#"{"*.example":{"username":"u","password":"p"}}"#),
            );
            for (image, calls) in
                ["a.example/x", "a.example/x", "a.example/y", "b.example/x"].iter().zip(calls)
            {
                assert!(lab.password(image).await.is_some(), "{image}");
                assert_eq!(lab.calls(), calls, "{cache_key}: {image}");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_may_not_be_kept_is_asked_for_again() {
        for (duration, calls) in [(r#""cacheDuration":"0s","#, 2), ("", 1)] {
            let cache = format!(r#""cacheKeyType":"Global",{duration}"#);
            let lab = Lab::new(
                r#"["r.example"]"#,
                &answer(&cache, r#"{"r.example":{"username":"u","password":"p"}}"#),
            );
            for _ in 0..2 {
                lab.password("r.example/a").await.unwrap();
            }
            assert_eq!(lab.calls(), calls, "{duration}");
        }
    }

    #[tokio::test]
    async fn what_makes_no_sense_costs_only_the_credentials() {
        let other_version = answer(r#""cacheKeyType":"Image","#, "null").replace("io/v1", "io/v1beta1");
        for said in [
            "no json",
            &other_version,
            &answer(r#""cacheKeyType":"Moon","#, "null"),
            &answer(r#""cacheKeyType":"Image","cacheDuration":"soon","#, "null"),
            &answer(r#""cacheKeyType":"Image","#, "null"),
        ] {
            let lab = Lab::new(r#"["r.example"]"#, said);
            assert_eq!(lab.password("r.example/a").await, None, "{said}");
        }
        let lab = Lab::new(r#"["r.example"]"#, "");
        put(&lab.dir.path().join("bin/test"), "#!/bin/sh\nexit 3\n");
        assert_eq!(lab.password("r.example/a").await, None);
    }
}
