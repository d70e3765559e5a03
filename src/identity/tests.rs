//! Every fault of the files, and every refusal of a handshake as both sides tell it.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::ExtendedKeyUsagePurpose as Usage;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::{
    testing::{Ca, settings_in, write_key},
    *,
};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn load_error(settings: &Settings) -> IdentityError {
    match load(settings, now()) {
        Ok(identity) => panic!("`{}` was loaded", identity.name()),
        Err(error) => error,
    }
}

#[test]
fn a_good_pair_is_an_identity() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let settings =
        ca.node("ignored").names(&["10.0.0.5", "*.example", "Node5", "node5.example"]).write(dir.path());
    let identity = load(&settings, now()).unwrap();
    assert_eq!(identity.name(), "node5");
    let left = identity.not_after().duration_since(now()).unwrap();
    assert!(left <= HOUR && left > HOUR / 2);
}

#[test]
fn absent_files_and_half_pairs_are_told_apart() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let settings = settings_in(dir.path());
    assert!(matches!(load_error(&settings), IdentityError::Absent { path } if path == settings.cert));
    ca.node("a").write(dir.path());
    fs::remove_file(&settings.key).unwrap();
    let error = load_error(&settings);
    assert!(matches!(&error, IdentityError::HalfPair { present, absent }
        if *present == settings.cert && *absent == settings.key));
    assert!(error.to_string().contains("put the other half beside it"));
    ca.node("a").write(dir.path());
    fs::remove_file(&settings.ca).unwrap();
    assert!(matches!(load_error(&settings), IdentityError::Absent { path } if path == settings.ca));
}

#[test]
fn files_that_hold_something_else_are_refused_by_name() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let settings = ca.node("a").write(dir.path());
    let (cert, key) = ca.node("a").issue();
    let refused = |path: &std::path::Path, text: &str| {
        let good = fs::read(path).unwrap();
        fs::write(path, text).unwrap();
        let error = load_error(&settings);
        fs::write(path, good).unwrap();
        error
    };
    assert!(
        matches!(refused(&settings.ca, "<html>"), IdentityError::NoCertificate { path } if path == settings.ca)
    );
    assert!(matches!(refused(&settings.cert, &key), IdentityError::NoCertificate { .. }));
    assert!(matches!(refused(&settings.key, &cert), IdentityError::NoKey { .. }));
    assert!(matches!(
        refused(&settings.cert, &cert.replace("\nMI", "\n!!")),
        IdentityError::Malformed { .. }
    ));
    assert!(matches!(refused(&settings.key, &key), IdentityError::KeyMismatch { .. }));
    assert!(matches!(refused(&settings.ca, &cert), IdentityError::NotCa { .. }));
    assert!(matches!(refused(&settings.ca, &"x".repeat(2 << 20)), IdentityError::TooLarge { .. }));
    fs::remove_file(&settings.ca).unwrap();
    fs::create_dir(&settings.ca).unwrap();
    assert!(matches!(load_error(&settings), IdentityError::Unreadable { path, .. } if path == settings.ca));
}

#[test]
fn a_certificate_that_others_would_refuse_is_refused_here_first() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let expired = ca.node("a").until(now() - HOUR / 2).write(dir.path());
    let error = load_error(&expired);
    assert!(
        matches!(error, IdentityError::Expired { .. })
            && error.to_string().contains("node.pem expired at 20")
    );
    let early = ca.node("a").from(now() + HOUR / 2).write(dir.path());
    assert!(matches!(load_error(&early), IdentityError::NotYetValid { .. }));
    let nameless = ca.node("a").names(&["10.0.0.5"]).write(dir.path());
    assert!(matches!(load_error(&nameless), IdentityError::NoName { .. }));
    let server = ca.node("a").usages(&[Usage::ServerAuth]).write(dir.path());
    assert!(matches!(load_error(&server), IdentityError::WrongUsage { usage: "clientAuth", .. }));
    let client = ca.node("a").usages(&[Usage::ClientAuth]).write(dir.path());
    assert!(matches!(load_error(&client), IdentityError::WrongUsage { usage: "serverAuth", .. }));
    for stranger in [Ca::new("stranger"), Ca::new("ca")] {
        let settings = ca.node("a").write(dir.path());
        fs::write(&settings.ca, &stranger.pem).unwrap();
        assert!(matches!(load_error(&settings), IdentityError::UnknownCa { .. }));
    }
    let gone = Ca::until("gone", now() - HOUR);
    let settings = gone.node("a").write(dir.path());
    assert!(matches!(load_error(&settings), IdentityError::CaExpired { .. }));
}

#[test]
fn a_bundle_of_roots_is_trusted_and_an_expired_one_in_it_is_not_missed() {
    let (old, new, dir) = (Ca::until("old", now() - HOUR), Ca::new("new"), tempfile::tempdir().unwrap());
    let settings = new.node("a").write(dir.path());
    fs::write(&settings.ca, format!("{}{}", old.pem, new.pem)).unwrap();
    load(&settings, now()).unwrap();
}

#[test]
fn a_rotation_is_taken_up_whole_and_never_by_half() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let settings = ca.node("a").write(dir.path());
    let identity = load(&settings, now()).unwrap();
    assert!(!identity.reload(now()).unwrap());
    let (cert, key) = ca.node("a").until(now() + HOUR * 5).issue();
    fs::write(&settings.cert, cert).unwrap();
    assert!(matches!(identity.reload(now()), Err(IdentityError::KeyMismatch { .. })));
    assert!(identity.not_after() < now() + HOUR * 2);
    write_key(&settings.key, &key);
    let clone = identity.clone();
    assert!(identity.reload(now()).unwrap());
    assert!(clone.not_after() > now() + HOUR * 2);
    assert!(matches!(
        clone.reload(now() + HOUR * 9),
        Err(IdentityError::Expired { .. } | IdentityError::CaExpired { .. })
    ));
    ca.node("b").write(dir.path());
    let renamed = identity.reload(now()).unwrap_err();
    assert!(
        renamed.to_string().ends_with("names `b` but this daemon runs as `a`: restart it to change its name")
    );
}

/// A handshake between `client` and `server`; the client dials `name`. Both sides' errors, and what the
/// client saw after its own part was done.
async fn meet(
    client: &Identity,
    server: &Identity,
    name: &str,
) -> (Result<String, String>, Result<String, String>) {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    meet_as(server, async |tcp| {
        let mut connected = connect(client, tcp, name, &[b"h2"]).await.map_err(|error| error.to_string())?;
        // TLS 1.3: the server's verdict on us arrives with the first read.
        let mut byte = [0];
        connected.stream.read_exact(&mut byte).await.map_err(|error| explain(&error))?;
        Ok(connected.peer_name)
    })
    .await
}

async fn meet_as(
    server: &Identity,
    client: impl AsyncFnOnce(TcpStream) -> Result<String, String>,
) -> (Result<String, String>, Result<String, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut accepted = accept(server, tcp).await.map_err(|error| error.to_string())?;
        accepted.stream.write_all(b"!").await.map_err(|error| explain(&error))?;
        accepted.stream.shutdown().await.map_err(|error| explain(&error))?;
        Ok(accepted.peer_name)
    };
    let dialing = async { client(TcpStream::connect(address).await.unwrap()).await };
    tokio::join!(dialing, accepting)
}

fn assert_told((client, server): (Result<String, String>, Result<String, String>), words: [&str; 2]) {
    let (client, server) = (client.unwrap_err(), server.unwrap_err());
    assert!(client.contains(words[0]), "client: {client}");
    assert!(server.contains(words[1]) && server.contains("127.0.0.1:"), "server: {server}");
}

#[tokio::test]
async fn two_of_one_ca_know_each_other() {
    let ca = Ca::new("ca");
    let (a, b) = (ca.identity("a"), ca.identity("b"));
    for name in ["b", "127.0.0.1"] {
        let (client, server) = meet(&a, &b, name).await;
        assert_eq!((client.unwrap(), server.unwrap()), ("b".into(), "a".into()));
    }
}

#[tokio::test]
async fn sessions_are_resumed_until_a_rotation() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let files = ca.node("b").write(dir.path());
    let (a, b) = (ca.identity("a"), load(&files, now()).unwrap());
    let resumed = async || {
        let (client, server) = meet_as(&b, async |tcp| {
            let mut connected =
                connect(&a, tcp, ServerName::try_from("b").unwrap(), &[b"http/1.1"]).await.unwrap();
            connected.stream.read_u8().await.unwrap();
            assert_eq!(connected.peer_name, "b");
            Ok(connected.stream.resumed().to_string())
        })
        .await;
        assert_eq!(server.unwrap(), "a");
        client.unwrap()
    };
    assert_eq!(resumed().await, "false");
    assert_eq!(resumed().await, "true");
    let (cert, key) = ca.node("b").issue();
    fs::write(&files.cert, cert).unwrap();
    write_key(&files.key, &key);
    assert!(b.reload(now()).unwrap());
    assert_eq!(resumed().await, "false");
}

#[tokio::test]
async fn another_ca_is_refused_on_both_sides() {
    let (ours, theirs) = (Ca::new("ours").identity("a"), Ca::new("theirs").identity("b"));
    let met = meet(&theirs, &ours, "a").await;
    assert_told(met, ["certificate is of an unknown CA", "does not know the CA of our certificate"]);
}

/// A client that trusts the server but is not trusted by it.
async fn meet_unchecked(
    server: &Identity,
    config: ClientConfig,
) -> (Result<String, String>, Result<String, String>) {
    meet_as(server, async |tcp| {
        let name = ServerName::try_from("b").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let mut stream = TlsStream::new(stream.into(), Side::Client);
        stream.read_u8().await.map_err(|error| explain(&error))?;
        Ok("the server".into())
    })
    .await
}

fn trusting(ca: &Ca) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

fn presenting(ca: &Ca, (cert, key): (String, String)) -> ClientConfig {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    trusting(ca).with_client_auth_cert(vec![cert], key).unwrap()
}

#[tokio::test]
async fn a_client_without_a_good_certificate_is_refused_on_both_sides() {
    let ca = Ca::new("ca");
    let server = ca.identity("b");
    let met = meet_unchecked(&server, trusting(&ca).with_no_client_auth()).await;
    assert_told(met, ["asks for a client certificate and we have none", "missing a client certificate"]);
    let met = meet_unchecked(&server, presenting(&ca, Ca::new("other").node("a").issue())).await;
    assert_told(met, ["does not know the CA of our certificate", "certificate is of an unknown CA"]);
    let expired = ca.node("a").until(now() - HOUR / 2).issue();
    let met = meet_unchecked(&server, presenting(&ca, expired)).await;
    assert_told(met, ["says that our certificate has expired", "certificate has expired at 20"]);
    let early = ca.node("a").from(now() + HOUR / 2).issue();
    let met = meet_unchecked(&server, presenting(&ca, early)).await;
    assert_told(met, ["not valid yet", "clock skew"]);
    let usage = ca.node("a").usages(&[Usage::ServerAuth]).issue();
    let met = meet_unchecked(&server, presenting(&ca, usage)).await;
    assert_told(met, ["certificate's usage (EKU)", "wrong usage (EKU)"]);
    let nameless = ca.node("a").names(&["10.0.0.5"]).issue();
    let (_, server) = meet_unchecked(&server, presenting(&ca, nameless)).await;
    assert!(server.unwrap_err().contains("has no DNS name (subjectAltName)"));
}

#[tokio::test]
async fn a_wrong_name_is_refused_on_both_sides() {
    let ca = Ca::new("ca");
    let met = meet(&ca.identity("a"), &ca.identity("b"), "c").await;
    assert_told(
        met,
        [
            "wrong name (SAN): we dialed c but the other side's certificate names",
            "does not name (SAN) the node that was dialed",
        ],
    );
}

#[tokio::test]
async fn plaintext_to_tls_is_told_in_words() {
    let server = Ca::new("ca").identity("b");
    let met = meet_as(&server, async |mut tcp| {
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        Err(format!("{} bytes of an alert", answer.len()))
    })
    .await;
    assert_told(met, ["", "the other side spoke plaintext to a TLS port"]);
}

#[tokio::test]
async fn tls_to_plaintext_is_told_in_words() {
    let client = Ca::new("ca").identity("a");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
    };
    let dialing = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("b").unwrap();
        connect(&client, tcp, name, &[b"h2"]).await.err().expect("plaintext").to_string()
    };
    let (error, ()) = tokio::join!(dialing, answering);
    assert!(error.contains("we spoke TLS to a plaintext port"), "{error}");
}

#[tokio::test]
async fn a_rotation_of_the_ca_goes_on_serving() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let (a_dir, b_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a_files, b_files) = (old.node("a").write(a_dir.path()), old.node("b").write(b_dir.path()));
    let (a, b) = (load(&a_files, now()).unwrap(), load(&b_files, now()).unwrap());
    let both = format!("{}{}", old.pem, new.pem);
    let meet_both_ways = async || {
        let (client, server) = meet(&a, &b, "b").await;
        assert_eq!((client.unwrap(), server.unwrap()), ("b".into(), "a".into()));
        let (client, server) = meet(&b, &a, "a").await;
        assert_eq!((client.unwrap(), server.unwrap()), ("a".into(), "b".into()));
    };
    meet_both_ways().await;
    for (files, node) in [(&a_files, &a), (&b_files, &b)] {
        fs::write(&files.ca, &both).unwrap();
        assert!(node.reload(now()).unwrap());
        meet_both_ways().await;
    }
    for (files, node, name) in [(&a_files, &a, "a"), (&b_files, &b, "b")] {
        let (cert, key) = new.node(name).issue();
        fs::write(&files.cert, cert).unwrap();
        write_key(&files.key, &key);
        assert!(node.reload(now()).unwrap());
        meet_both_ways().await;
    }
    fs::write(&a_files.ca, &new.pem).unwrap();
    assert!(a.reload(now()).unwrap());
    meet_both_ways().await;
    let met = meet(&old.identity("c"), &a, "a").await;
    assert_told(met, ["unknown CA", "unknown CA"]);
}

#[test]
fn the_end_of_a_certificate_is_near_in_its_last_tenth_and_in_its_last_month() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let near = |from: SystemTime, until: SystemTime, at: SystemTime| {
        let settings = ca.node("a").from(from).until(until).write(dir.path());
        load(&settings, now()).unwrap().is_near_its_end(at)
    };
    let (from, until) = (now() - HOUR * 10, now() + HOUR * 10);
    assert!(!near(from, until, until - HOUR * 3));
    assert!(near(from, until, until - HOUR));
    let until = now() + HOUR * 24 * 3650;
    assert!(!near(from, until, until - HOUR * 24 * 31));
    assert!(near(from, until, until - HOUR * 24 * 29));
}
