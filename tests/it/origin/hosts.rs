//! hosts.toml: mirrors, certificates, own doors and lost ports.

use std::{path::Path, sync::Arc};

use flotilla::{
    oci::Repository,
    origin::{Asker, Kind, Lead, Origin, OriginError, Pass, Settings, Sought},
};
use http::HeaderValue;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;

use super::{noise, origin_with, pull, team_app, with_blob};
use crate::registry::{Fault, Registry};

fn write(dir: &Path, host: &str, file: &str, text: &str) {
    std::fs::create_dir_all(dir.join(host)).unwrap();
    std::fs::write(dir.join(host).join(file), text).unwrap();
}

fn with_hosts(dir: &Path) -> Origin {
    origin_with(Settings { hosts_dir: vec![dir.to_owned()], ..Settings::default() })
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_last() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let (empty, broken) = (Registry::start().await, Registry::start().await.with(Fault::Html));
    let dir = tempfile::tempdir().unwrap();
    let mirrors = format!("[host.\"{}\"]\n[host.\"{}\"]\n", empty.url(), broken.url());
    write(dir.path(), &registry.host(), "hosts.toml", &mirrors);
    let origin = with_hosts(dir.path());
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), *bytes);
    assert_eq!((empty.seen().len(), broken.seen().len()), (1, 1), "the answering host is read from at once");
    let namespace = format!("ns={}", registry.host().replace(':', "%3A"));
    assert_eq!(empty.seen()[0].query, namespace);
    assert!(registry.seen().iter().all(|seen| seen.query.is_empty()));
}

#[tokio::test]
async fn a_mirror_that_dies_in_the_middle_is_followed_by_the_registry() {
    let (registry, digest, bytes) = with_blob(400_000).await;
    let mirror = Registry::beside(&registry).await.with(Fault::Truncate { after: 100_000, times: 1 });
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &registry.host(), "hosts.toml", &format!("[host.\"{}\"]", mirror.url()));
    assert_eq!(pull(&with_hosts(dir.path()), &registry, &digest, 400_000).await.unwrap(), *bytes);
    let start = registry.seen()[0].range_start().unwrap();
    assert!(start > 0, "the mirror gave something");
    assert_eq!(registry.body_bytes(crate::registry::Kind::Blob), 400_000 - start, "only what was missing");
}

#[tokio::test]
async fn a_mirror_without_the_capability_is_not_asked_for_tags() {
    let (registry, mirror) = (Registry::start().await, Registry::start().await);
    let digest = registry.put_manifest("team/app", Some("v1"), "application/x", "right");
    mirror.put_manifest("team/app", Some("v1"), "application/x", "stale");
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[host.\"{}\"]\ncapabilities = [\"pull\"]", mirror.url());
    write(dir.path(), &registry.host(), "hosts.toml", &text);
    let reference = format!("{}/team/app:v1", registry.host()).parse().unwrap();
    assert_eq!(with_hosts(dir.path()).resolve(&reference).await.unwrap().digest, digest);
    assert!(mirror.seen().is_empty());
}

#[tokio::test]
async fn our_own_door_is_never_asked() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let door = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &registry.host(), "hosts.toml", &format!("[host.\"{}\"]", door.url()));
    let settings = Settings {
        hosts_dir: vec![dir.path().into()],
        own_doors: vec![door.address()],
        ..Settings::default()
    };
    assert_eq!(pull(&origin_with(settings), &registry, &digest, 1000).await.unwrap(), *bytes);
    assert!(door.seen().is_empty());
}

#[tokio::test]
async fn plain_http_needs_somebody_to_name_the_host() {
    let (registry, digest, _) = with_blob(1000).await;
    let settings = Settings { plain_http: vec!["elsewhere.local".into()], ..Settings::default() };
    let error = pull(&origin_with(settings), &registry, &digest, 1000).await.unwrap_err();
    let OriginError::NoOrigin { source: Some(source), .. } = error else { panic!("{error:?}") };
    assert!(
        matches!(*source, OriginError::NoTls { .. }) && source.to_string().contains("plain_http"),
        "{source}"
    );
    assert!(registry.seen().is_empty());
}

#[tokio::test]
async fn a_lost_port_is_found_and_remembered() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let other = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    for registry in [&other, &registry] {
        std::fs::create_dir(dir.path().join(registry.host())).unwrap();
    }
    let origin = with_hosts(dir.path());
    let label = Repository { host: "127.0.0.1".into(), path: "team/app".into() };
    let located = origin.locate(std::slice::from_ref(&label), &digest, 1000).await.unwrap();
    assert_eq!(located.repository(), &team_app(&registry));
    let body = origin.read(&located, 0..1000).await.unwrap();
    assert_eq!(super::collect(body).await.unwrap(), *bytes);

    let asked = other.seen().len();
    origin.locate(&[label], &digest, 1000).await.unwrap();
    assert_eq!(other.seen().len(), asked, "the one that answered is asked first");
}

#[tokio::test]
async fn a_lost_port_is_found_in_plain_http_too() {
    let (registry, digest, _) = with_blob(1000).await;
    let settings = Settings { plain_http: vec![registry.host()], ..Settings::default() };
    let label = Repository { host: "127.0.0.1".into(), path: "team/app".into() };
    let located = origin_with(settings).locate(&[label], &digest, 1000).await.unwrap();
    assert_eq!(located.repository().host, registry.host());
}

#[tokio::test]
async fn a_clients_pass_goes_to_the_port_that_it_named_and_to_no_other() {
    let (registry, digest, _) = with_blob(1000).await;
    let settings = Settings { plain_http: vec![registry.host()], ..Settings::default() };
    let origin = origin_with(settings);
    let label = Repository { host: "127.0.0.1".into(), path: "team/app".into() };
    let sought = Sought { kind: Kind::Blob, digest: digest.clone(), len: 1000 };
    let pass = Pass::new(HeaderValue::from_static("Basic c2VjcmV0"));
    let lead = Lead { repository: label.clone(), asker: Asker::Client(Some(pass)) };
    assert!(origin.follow(std::slice::from_ref(&lead), &sought).await.is_err());
    assert!(registry.seen().is_empty());
    origin.locate(&[label], &digest, 1000).await.unwrap();
    let asked = registry.seen().len();
    assert!(origin.follow(&[lead], &sought).await.is_err(), "what the node found is not for clients");
    assert_eq!(registry.seen().len(), asked);
}

#[tokio::test]
async fn another_length_is_another_blob() {
    let (registry, digest, _) = with_blob(1000).await;
    let error = super::origin().locate(&[team_app(&registry)], &digest, 999).await.unwrap_err();
    assert_eq!(error.reason(), "no_origin");
    let OriginError::NoOrigin { source: Some(source), tried: 1, .. } = error else { panic!("{error:?}") };
    assert!(matches!(*source, OriginError::WrongLength { expected: 999, .. }), "{source}");
}

struct Tls {
    ca_pem: String,
    client_pem: String,
    client_key: String,
    server: Arc<rustls::ServerConfig>,
}

/// A CA, a certificate for loopback, and a client's certificate that the server demands if told so.
fn tls(demand_client: bool) -> Tls {
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap(), key)
    };
    let ((cert, key), (client, client_key)) = (leaf("127.0.0.1"), leaf("node"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let builder = if demand_client {
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Tls {
        ca_pem: ca.pem(),
        client_pem: client.pem(),
        client_key: client_key.serialize_pem(),
        server: Arc::new(builder.with_single_cert(vec![cert.der().clone()], key).unwrap()),
    }
}

/// A certificate and its key.
fn issued_by_itself(name: &str) -> (String, String) {
    let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
    params.distinguished_name.push(DnType::CommonName, name);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

async fn secure(tls: &Tls) -> Registry {
    Registry::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), Some(tls.server.clone()))
}

async fn verified(dir: &Path, registry: &Registry) -> Result<(), OriginError> {
    let bytes = noise(1000);
    let digest = registry.put_blob("team/app", bytes.clone());
    let plain_http = vec!["elsewhere.local".into()];
    let origin = origin_with(Settings { hosts_dir: vec![dir.to_owned()], plain_http, ..Settings::default() });
    let pulled = pull(&origin, registry, &digest, 1000).await;
    pulled.map(|pulled| assert_eq!(pulled, bytes))
}

#[tokio::test]
async fn a_private_ca_is_named_in_hosts_toml_or_in_dockers_layout() {
    let tls = tls(false);
    let registry = secure(&tls).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &registry.host(), "hosts.toml", "ca = \"private.pem\"");
    write(dir.path(), &registry.host(), "private.pem", &tls.ca_pem);
    verified(dir.path(), &registry).await.unwrap();

    let docker = tempfile::tempdir().unwrap();
    write(docker.path(), &registry.host(), "ca.crt", &tls.ca_pem);
    verified(docker.path(), &registry).await.unwrap();
}

#[tokio::test]
async fn skip_verify_skips_nothing() {
    let registry = secure(&tls(false)).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[host.\"{}\"]\nskip_verify = true", registry.url());
    write(dir.path(), &registry.host(), "hosts.toml", &text);
    let error = verified(dir.path(), &registry).await.unwrap_err();
    let OriginError::NoOrigin { source: Some(source), .. } = error else { panic!("{error:?}") };
    assert!(matches!(*source, OriginError::Tls { .. }), "{source}");
    assert!(registry.seen().is_empty());
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_hosts_toml_says_so() {
    let tls = tls(true);
    let registry = secure(&tls).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &registry.host(), "ca.crt", &tls.ca_pem);
    assert!(verified(dir.path(), &registry).await.is_err());
    write(dir.path(), &registry.host(), "client.cert", &tls.client_pem);
    write(dir.path(), &registry.host(), "client.key", &tls.client_key);
    verified(dir.path(), &registry).await.unwrap();

    let said = tempfile::tempdir().unwrap();
    let text = "ca = \"ca.pem\"\nclient = [[\"node.pem\", \"node.key\"]]\n";
    write(said.path(), &registry.host(), "hosts.toml", "ca = \"ca.pem\"");
    write(said.path(), &registry.host(), "ca.pem", &tls.ca_pem);
    assert!(verified(said.path(), &registry).await.is_err());
    write(said.path(), &registry.host(), "hosts.toml", text);
    write(said.path(), &registry.host(), "node.pem", &tls.client_pem);
    write(said.path(), &registry.host(), "node.key", &tls.client_key);
    verified(said.path(), &registry).await.unwrap();

    // Of several it is the one whose issuer the host names.
    let (stranger, key) = issued_by_itself("elsewhere");
    write(said.path(), &registry.host(), "first.pem", &stranger);
    write(said.path(), &registry.host(), "first.key", &key);
    let both = text.replace("[[", "[[\"first.pem\", \"first.key\"], [");
    write(said.path(), &registry.host(), "hosts.toml", &both);
    verified(said.path(), &registry).await.unwrap();

    // It is the node's, and opens nothing to clients.
    let digest = registry.put_blob("team/app", noise(1000));
    let wanted = (Kind::Blob, &digest);
    let plain_http = vec!["elsewhere.local".into()];
    let hosts_dir = vec![dir.path().to_owned()];
    let origin = origin_with(Settings { hosts_dir, plain_http, ..Settings::default() });
    assert_eq!(origin.reach(&team_app(&registry), wanted, &Asker::Node).await.unwrap(), 1000);
    origin.reach(&team_app(&registry), wanted, &Asker::Client(None)).await.unwrap_err();
}

#[tokio::test]
async fn registries_are_reached_over_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        eprintln!("skipped: this machine has no IPv6 on loopback");
        return;
    };
    let registry = Registry::on(listener, None);
    let bytes = noise(1000);
    let digest = registry.put_blob("team/app", bytes.clone());
    let origin = origin_with(Settings { plain_http: vec![registry.host()], ..Settings::default() });
    assert_eq!(pull(&origin, &registry, &digest, 1000).await.unwrap(), bytes);
    let label = Repository { host: "::1".into(), path: "team/app".into() };
    assert_eq!(origin.locate(&[label], &digest, 1000).await.unwrap().repository(), &team_app(&registry));
}

#[tokio::test]
async fn headers_of_a_mirror_go_to_the_mirror_and_no_further() {
    let (registry, digest, bytes) = with_blob(1000).await;
    let store = Registry::beside(&registry).await;
    let mirror = Registry::beside(&registry).await.with(Fault::RedirectBlobs { to: store.url() });
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[host.\"{}\".header]\nauthorization = \"Basic c2VjcmV0\"\nx-team = [\"a\", \"b\"]",
        mirror.url()
    );
    write(dir.path(), &registry.host(), "hosts.toml", &text);
    assert_eq!(pull(&with_hosts(dir.path()), &registry, &digest, 1000).await.unwrap(), *bytes);
    assert!(mirror.seen().iter().all(|seen| seen.headers.get_all("x-team").iter().count() == 2));
    assert!(mirror.seen().iter().all(|seen| seen.carried_credentials()));
    assert_eq!((mirror.seen().len(), store.seen().len(), registry.seen().len()), (2, 2, 0));
    assert!(
        store.seen().iter().all(|seen| !seen.carried_credentials() && !seen.headers.contains_key("x-team"))
    );
    let asked = mirror.seen().len();
    let wanted = (Kind::Blob, &digest);
    with_hosts(dir.path()).reach(&team_app(&registry), wanted, &Asker::Client(None)).await.unwrap();
    assert!(
        mirror.seen()[asked..].iter().all(|seen| !seen.carried_credentials()),
        "nor are they for clients"
    );
}
