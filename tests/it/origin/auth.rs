//! Tokens and passwords: who gets them, who does not, and what happens when they age.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flotilla::origin::{Origin, OriginError, ProviderFiles, Settings};

use super::{origin, origin_with, pull, with_blob};
use crate::registry::{Fault, Kind, Registry};

const LIFE: Duration = Duration::from_secs(300);

fn for_user(user: &str, password: &str) -> Fault {
    Fault::TokenAuth { user: Some((user.into(), password.into())), identity_token: None, life: LIFE }
}

fn config_file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    path
}

fn with_config(dir: &tempfile::TempDir, text: &str) -> Origin {
    origin_with(Settings { docker_config: Some(config_file(dir, text)), ..Settings::default() })
}

fn logged_in(dir: &tempfile::TempDir, registry: &Registry, login: &str) -> Origin {
    let auth = STANDARD.encode(login);
    with_config(dir, &format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host()))
}

#[tokio::test]
async fn one_token_serves_many_readers() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(for_user("me", "secret"));
    let dir = tempfile::tempdir().unwrap();
    let origin = logged_in(&dir, &registry, "me:secret");
    for pulled in
        futures_util::future::join_all((0..8).map(|_| pull(&origin, &registry, &digest, 1000))).await
    {
        assert_eq!(pulled.unwrap(), *bytes);
    }
    assert_eq!(registry.requests(Kind::Token), 1);
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(for_user("me", "secret"));
    let dir = tempfile::tempdir().unwrap();
    let origin = logged_in(&dir, &registry, "me:secret");
    pull(&origin, &registry, &digest, 1000).await.unwrap();
    registry.revoke_tokens();
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
    assert_eq!(registry.requests(Kind::Token), 2);
}

#[tokio::test]
async fn a_token_that_is_old_at_birth_is_asked_for_each_time() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(Fault::TokenAuth { user: None, identity_token: None, life: Duration::ZERO });
    assert_eq!(pull(&origin(), &registry, &digest, 1000).await.unwrap(), *bytes);
    assert_eq!(registry.requests(Kind::Token), 2, "one for HEAD, one for GET");
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let fault = Fault::TokenAuth { user: None, identity_token: Some("identity".into()), life: LIFE };
    let registry = registry.with(fault);
    let dir = tempfile::tempdir().unwrap();
    let auths = format!(r#"{{"auths":{{"{}":{{"identitytoken":"identity"}}}}}}"#, registry.host());
    let origin = with_config(&dir, &auths);
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
}

#[tokio::test]
async fn basic_auth_is_met() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(Fault::BasicAuth { user: "me".into(), password: "se:cret".into() });
    let dir = tempfile::tempdir().unwrap();
    let origin = logged_in(&dir, &registry, "me:se:cret");
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
}

#[tokio::test]
async fn wrong_and_missing_passwords_are_final_and_unprinted() {
    let (registry, digest, _) = with_blob(1000).await;
    let dir = tempfile::tempdir().unwrap();
    for fault in [for_user("me", "right"), Fault::BasicAuth { user: "me".into(), password: "right".into() }] {
        registry.heal();
        registry.switch_on(fault);
        for origin in [logged_in(&dir, &registry, "me:wr0ng"), origin()] {
            let before = registry.seen().len();
            let error = pull(&origin, &registry, &digest, 1000).await.unwrap_err();
            let OriginError::NoOrigin { source: Some(source), .. } = &error else { panic!("{error:?}") };
            assert!(matches!(**source, OriginError::Unauthorized { .. }), "{source}");
            assert_eq!((error.reason(), error.is_final()), ("origin_unauthorized", true));
            assert!(!format!("{error:?} {source}").contains("wr0ng"));
            assert!(
                registry.seen().len() <= before + 2,
                "asked once, and once with credentials or at the realm"
            );
        }
    }
}

/// A script stands for a cloud's plugin: what Docker's config has comes first, what it lacks is the script's to know.
#[tokio::test]
async fn kubelets_credential_providers_are_asked_for_what_nothing_else_knows() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let registry = registry.with(for_user("cloud", "token"));
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let script = dir.path().join("cloud");
    let answer = format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"1h","auth":{{"{}":{{"username":"cloud","password":"token"}}}}}}"#,
        registry.host()
    );
    let text = format!("#!/bin/sh\ncat >>{}\necho '{answer}'\n", calls.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("providers.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: cloud\n  matchImages: [127.0.0.1:PORT/team]\n  defaultCacheDuration: 0s\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n";
    std::fs::write(&config, text.replace("PORT", &registry.address().port().to_string())).unwrap();
    let providers = ProviderFiles { config, bin_dir: dir.path().to_owned() };
    let with = |docker_config: Option<PathBuf>| {
        let credential_providers = Some(providers.clone());
        origin_with(Settings { docker_config, credential_providers, ..Settings::default() })
    };

    let origin = with(None);
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
    let asked = std::fs::read_to_string(&calls).unwrap();
    let image = format!(r#""image":"{}/team/app""#, registry.host());
    assert_eq!(asked.matches(&image).count(), 1, "asked once, by the repository's name: {asked}");

    // Another repository is none of that provider's business.
    let foreign = registry.put_blob("other/app", vec![7; 10]);
    let repository = flotilla::oci::Repository { host: registry.host(), path: "other/app".into() };
    origin.locate(&[repository], &foreign, 10).await.unwrap_err();

    let auth = STANDARD.encode("cloud:token");
    let filed = config_file(&dir, &format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host()));
    assert_eq!(pull(&with(Some(filed)), &registry, &digest, 1000).await.unwrap(), *bytes);
    assert_eq!(std::fs::read_to_string(&calls).unwrap(), asked, "docker's config has it");
}

/// Helpers are found through PATH, which no test may change for the others: this one runs itself once more with a
/// PATH of its own.
#[tokio::test]
async fn a_credential_helper_is_run() {
    const RERUN: &str = "FLOTILLA_TEST_WITH_HELPER";
    if std::env::var_os(RERUN).is_some() {
        let (registry, digest, bytes) = with_blob(1000).await;
        let registry = registry.with(for_user("helped", "by a script"));
        let dir = tempfile::tempdir().unwrap();
        for config in [
            format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, registry.host()),
            r#"{"credsStore":"test"}"#.to_owned(),
        ] {
            let origin = with_config(&dir, &config);
            assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("docker-credential-test");
    let text = "#!/bin/sh\ncat >/dev/null\necho '{\"Username\":\"helped\",\"Secret\":\"by a script\"}'\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let again = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "origin::auth::a_credential_helper_is_run"])
        .env(RERUN, "1")
        .env("PATH", path)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
}
