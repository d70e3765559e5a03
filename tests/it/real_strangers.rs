//! Who may not speak to a real daemon's mesh port, and what both sides say about it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use flotilla::identity::explain;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;

use crate::{
    lab::{
        Lab, certs,
        containerd::Programs,
        node::Node,
        samples,
        story::{flotilla_program, tell},
    },
    real_image::eventually,
    real_mesh::{bytes_from, metric},
};

#[test]
fn callers_without_a_right_are_refused() {
    tell("1.6", refuses_callers);
}

#[test]
fn daemons_that_do_not_belong_together_say_why() {
    tell("1.6", strange_daemons);
}

#[test]
fn a_node_without_a_certificate_serves_itself() {
    tell("1.6", without_a_certificate);
}

#[test]
fn certificates_that_come_later_open_the_mesh() {
    tell("1.6", certificates_that_come_later);
}

/// A request that every member may make; nobody has that blob.
const REQUEST: &[u8] = b"GET /v1/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/chain HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n";

/// Calls a mesh port as that of `name`, with the certificate in `certificate`, if any, believing the authority in `ca`. What it
/// answers, or why there is no answer, in the words of a daemon.
fn call(address: &str, name: &'static str, ca: &Path, certificate: Option<&Path>) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.join("ca.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some(dir) => {
            let chain = vec![CertificateDer::from_pem_file(dir.join("node.pem")).unwrap()];
            let key = PrivateKeyDer::from_pem_file(dir.join("node-key.pem")).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = ServerName::try_from(name).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    let mut answer = String::new();
    let called = stream.write_all(REQUEST).and_then(|()| stream.read_to_string(&mut answer));
    called.map(|_| answer).map_err(|error| explain(&error))
}

const HOUR: Duration = Duration::from_secs(3600);

/// A node's certificate of the authority in `ca`, for the node n9, that expired an hour ago.
fn expired(ca: &Path, dir: &Path) -> PathBuf {
    made(ca, dir, &["n9"], SystemTime::now() - HOUR)
}

/// A node's certificate of the authority in `ca`, good from yesterday until `until`.
fn made(ca: &Path, dir: &Path, names: &[&str], until: SystemTime) -> PathBuf {
    let read = |file: &str| fs::read_to_string(ca.join(file)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), ca_key).unwrap();
    let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = (SystemTime::now() - HOUR * 24).into();
    params.not_after = until.into();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("node.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("node-key.pem"), key.serialize_pem()).unwrap();
    dir.to_owned()
}

fn refuses_callers(lab: &Lab, containerd: Programs) {
    let mut node = lab.crowd(&containerd, 1).unwrap().remove(0);
    let address = node.flotilla().address_of("mesh").unwrap();
    let ours = lab.dir().join("tls");
    let theirs = lab.dir().join("other-tls");
    let member = certs::node(flotilla_program(), &ours, "n8", "127.0.0.1").unwrap();
    let foreign = certs::node(flotilla_program(), &theirs, "n8", "127.0.0.1").unwrap();
    let old = expired(&ours, &lab.dir().join("old-tls"));

    let answer = call(&address, "n1", &ours, Some(&member)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "a member is answered: {answer}");

    let refused: [(Option<&Path>, &str, &str); 3] = [
        (None, "asks for a client certificate and we have none", "missing a client certificate"),
        (Some(&foreign), "its CA has the same name but another key", "is of an unknown CA"),
        (Some(&old), "says that our certificate has expired", "certificate has expired at "),
    ];
    for (certificate, here, there) in refused {
        let why = call(&address, "n1", &ours, certificate).unwrap_err();
        assert!(why.contains(here), "{why}");
        let line = node.flotilla().process().unwrap().wait_for(there).unwrap();
        assert!(line.contains("refused a connection from 127."), "{line}");
    }
    // Somebody who calls a port of another mesh.
    let why = call(&address, "n1", &theirs, Some(&foreign)).unwrap_err();
    assert!(why.contains("is of an unknown CA"), "{why}");
    node.flotilla().process().unwrap().wait_for("its CA has the same name but another key").unwrap();

    // Somebody who takes it for another node.
    let why = call(&address, "n7", &ours, Some(&member)).unwrap_err();
    assert!(why.contains("wrong name (SAN): we dialed n7 but"), "{why}");
    node.flotilla().process().unwrap().wait_for("it does not name (SAN) the node that was dialed").unwrap();

    let mut plain = TcpStream::connect(&address).unwrap();
    plain.write_all(REQUEST).unwrap();
    let mut answer = Vec::new();
    // It may be reset: what counts is that nothing is answered in plaintext.
    let _reset_or_closed = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    node.flotilla().process().unwrap().wait_for("spoke plaintext to a TLS port").unwrap();
}

fn strange_daemons(lab: &Lab, containerd: Programs) {
    let mut node = lab.crowd(&containerd, 1).unwrap().remove(0);
    let address = node.flotilla().address_of("mesh").unwrap();

    // Of another authority: both distrust each other.
    let mut foreign = with_certificate(lab, &containerd, "other-tls");
    let line =
        foreign.flotilla().process().unwrap().wait_for(&format!("no member at {address} yet")).unwrap();
    assert!(line.contains("is of an unknown CA"), "{line}");
    let line =
        node.flotilla().process().unwrap().wait_for("its CA has the same name but another key").unwrap();
    assert!(line.contains("refused a connection from 127."), "{line}");

    // It is no member, and still serves its own containerd.
    let status: Value = serde_json::from_str(&node.flotilla().status().unwrap()).unwrap();
    let alive = |member: &&Value| member["state"] == "alive" && member["name"] != "n1";
    assert_eq!(status["members"].as_array().unwrap().iter().find(alive), None, "{status}");
    samples::small(lab.images(), "demo/small:v1").unwrap();
    foreign.pull(&lab.name("demo/small:v1")).unwrap();
    assert_eq!(metric(&foreign, "flotilla_layers_total", &["outcome=\"intercepted\""]), 3);
    assert_eq!(bytes_from(&foreign, "peer"), 0);
}

/// A node with a certificate of the authority in `<lab>/<folder>`.
fn with_certificate(lab: &Lab, containerd: &Programs, folder: &str) -> Node {
    let plan = lab.node(containerd).alone();
    let (name, address) = plan.place();
    let tls = certs::node(flotilla_program(), &lab.dir().join(folder), name, address).unwrap();
    let setting = |file: &str| format!("{:?}", tls.join(file));
    plan.setting("mesh", "ca", &setting("ca.pem"))
        .setting("mesh", "cert", &setting("node.pem"))
        .setting("mesh", "key", &setting("node-key.pem"))
        .start()
        .unwrap()
}

fn without_a_certificate(lab: &Lab, containerd: Programs) {
    let _member = lab.crowd(&containerd, 1).unwrap();
    let absent = lab.dir().join("no-tls");
    let setting = |file: &str| format!("{:?}", absent.join(file));
    let plan = lab.node(&containerd).alone();
    let mesh_address = format!("{}:{}", plan.place().1, crate::lab::node::MESH_PORT);
    let mut node = plan
        .setting("mesh", "ca", &setting("ca.pem"))
        .setting("mesh", "cert", &setting("node.pem"))
        .setting("mesh", "key", &setting("node-key.pem"))
        .start()
        .unwrap();

    assert!(TcpStream::connect(&mesh_address).is_err(), "something listens at {mesh_address}");
    let said = node.flotilla().process().unwrap().wait_for("the mesh port stays closed").unwrap();
    assert!(said.contains("is absent: put it there, or make one with `flotilla certs`"), "{said}");
    let status: Value = serde_json::from_str(&node.flotilla().status().unwrap()).unwrap();
    assert_eq!(status["mesh"]["open"], false);
    assert!(status["mesh"]["reason"].as_str().unwrap().contains("is absent"), "{status}");
    let mut admin = TcpStream::connect(node.flotilla().address_of("admin").unwrap()).unwrap();
    admin.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    admin.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.0 503 ") && page.contains("the mesh port is closed: "), "{page}");

    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    assert_eq!(metric(&node, "flotilla_layers_total", &["outcome=\"intercepted\""]), 3);
    let whole = image.layers.iter().map(|layer| layer.blob.size).sum::<u64>();
    assert_eq!((bytes_from(&node, "origin"), bytes_from(&node, "peer")), (whole, 0));
    let lines = node.flotilla().process().unwrap().lines();
    assert_eq!(lines.iter().filter(|line| line.contains("mesh port")).count(), 1, "{lines:?}");
}

/// The answer of `/readyz` once it has been 200, or 503 with these words.
fn readyz(node: &Node, words: &str) {
    eventually(words, || node.daemon().unwrap().get("/readyz").is_ok_and(|page| page.contains(words)));
}

fn certificates_that_come_later(lab: &Lab, containerd: Programs) {
    let mut member = lab.crowd(&containerd, 1).unwrap().remove(0);
    let (authority, place) = (lab.dir().join("tls"), lab.dir().join("late-tls"));
    fs::create_dir_all(&place).unwrap();
    let setting = |file: &str| format!("{:?}", place.join(file));
    let plan = lab.node(&containerd).alone();
    let (name, address) = (plan.place().0.to_owned(), plan.place().1.to_owned());
    let mut node = plan
        .setting("mesh", "ca", &setting("ca.pem"))
        .setting("mesh", "cert", &setting("node.pem"))
        .setting("mesh", "key", &setting("node-key.pem"))
        .start()
        .unwrap();
    let process = |node: &mut Node, words: &str| node.flotilla().process().unwrap().wait_for(words).unwrap();
    process(&mut node, "node.pem is absent");
    readyz(&node, "the mesh port is closed: ");

    let made = certs::node(flotilla_program(), &authority, &name, &address).unwrap();
    let put = |from: &Path, file: &str| fs::copy(from.join(file), place.join(file)).unwrap();
    put(&made, "ca.pem");
    put(&made, "node.pem");
    process(&mut node, "node-key.pem is absent: a certificate needs its key");
    let old = expired(&authority, &lab.dir().join("old-tls"));
    put(&old, "node.pem");
    put(&old, "node-key.pem");
    process(&mut node, "node.pem expired at ");
    readyz(&node, "node.pem expired at ");

    put(&made, "node.pem");
    put(&made, "node-key.pem");
    process(&mut node, "a valid certificate has come: the mesh opens");
    process(&mut member, &format!("member `{name}` is here"));
    process(&mut node, "member `n1` is here");
    readyz(&node, "ready");
    let status: Value = serde_json::from_str(&node.flotilla().status().unwrap()).unwrap();
    assert_eq!(
        (&status["mesh"]["open"], &status["mesh"]["reason"]),
        (&true.into(), &Value::Null),
        "{status}"
    );
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let whole = image.layers.iter().map(|layer| layer.blob.size).sum::<u64>();
    member.pull(&lab.name("demo/small:v1")).unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    assert_eq!((bytes_from(&node, "peer"), bytes_from(&node, "origin")), (whole, 0));

    // Half a renewal changes nothing but what is said of it; the whole of it is taken into use.
    fs::rename(&made, lab.dir().join("before-tls")).unwrap();
    let renewed = certs::node(flotilla_program(), &authority, &name, &address).unwrap();
    put(&renewed, "node.pem");
    process(&mut node, "the certificate of before stays in use");
    readyz(&node, "the mesh certificate cannot be renewed: ");
    put(&renewed, "node-key.pem");
    process(&mut node, "new certificate in use");
    readyz(&node, "ready");
    let answer =
        call(&node.flotilla().address_of("mesh").unwrap(), "n2", &authority, Some(&renewed)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");

    is_reminded(&mut node, &|until| {
        let last = self::made(&authority, &lab.dir().join("last-tls"), &[&name, &address], until);
        put(&last, "node.pem");
        put(&last, "node-key.pem");
    });
}

/// What nobody renews is spoken of while it still works.
fn is_reminded(node: &mut Node, put_one_until: &dyn Fn(SystemTime)) {
    let until = SystemTime::now() + HOUR;
    put_one_until(until);
    node.flotilla().process().unwrap().wait_for("the certificate expires soon: ").unwrap();
    readyz(node, "ready");
    let expiry = node.flotilla().metrics().unwrap().sum("flotilla_certificate_expiry_seconds", &[]);
    let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((expiry - since).abs() < 2.0, "{expiry} {since}");
}
