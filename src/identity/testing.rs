//! Certificates made on the spot, for the tests of every module that speaks TLS.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::{Identity, Settings, load};

const HOUR: Duration = Duration::from_secs(3600);

/// A certificate authority in memory.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::until(name, SystemTime::now() + HOUR)
    }

    pub(crate) fn until(name: &str, not_after: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = not_after.into();
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A node's certificate in the making: named `name` and 127.0.0.1, valid for an hour.
    pub(crate) fn node(&self, name: &str) -> Node<'_> {
        let now = SystemTime::now();
        Node {
            ca: self,
            names: vec![name.to_owned(), "127.0.0.1".to_owned()],
            from: now - HOUR,
            until: now + HOUR,
            usages: vec![Usage::ServerAuth, Usage::ClientAuth],
        }
    }

    /// The identity of a node named `name`.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let dir = tempfile::tempdir().unwrap();
        load(&self.node(name).write(dir.path()), SystemTime::now()).unwrap()
    }
}

pub(crate) struct Node<'a> {
    ca: &'a Ca,
    names: Vec<String>,
    from: SystemTime,
    until: SystemTime,
    usages: Vec<Usage>,
}

impl Node<'_> {
    pub(crate) fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub(crate) fn from(mut self, from: SystemTime) -> Self {
        self.from = from;
        self
    }

    pub(crate) fn until(mut self, until: SystemTime) -> Self {
        self.until = until;
        self
    }

    pub(crate) fn usages(mut self, usages: &[Usage]) -> Self {
        self.usages = usages.to_vec();
        self
    }

    /// Certificate and key, as PEM.
    pub(crate) fn issue(self) -> (String, String) {
        let mut params = CertificateParams::new(self.names).unwrap();
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        params.extended_key_usages = self.usages;
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes ca.pem, node.pem and node-key.pem into `dir`.
    pub(crate) fn write(self, dir: &Path) -> Settings {
        let settings = settings_in(dir);
        fs::write(&settings.ca, &self.ca.pem).unwrap();
        let (cert, key) = self.issue();
        fs::write(&settings.cert, cert).unwrap();
        write_key(&settings.key, &key);
        settings
    }
}

pub(crate) fn settings_in(dir: &Path) -> Settings {
    Settings { ca: dir.join("ca.pem"), cert: dir.join("node.pem"), key: dir.join("node-key.pem") }
}

pub(crate) fn write_key(path: &Path, pem: &str) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new();
    let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
