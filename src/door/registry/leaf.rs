//! Certificates for hosts whose TLS the operator lets this node open, signed by the operator's own CA.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};

/// A leaf counts for so long, and as long before now: clocks of a machine's programs agree, its containers' may not.
const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
const VALID_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// It is made anew long before it ends: connections that are open go on with theirs.
const RENEWED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Hosts whose leaf is kept; there are as many as the operator lists, with ports or without.
const LEAVES_MAX: usize = 256;

/// Why TLS cannot be opened for anybody.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("mirror.proxy_hosts opens TLS, which takes a CA of yours: set mirror.ca_cert and mirror.ca_key")]
    Missing,
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds no certificate in PEM form")]
    NotCertificate { path: PathBuf },
    #[error("{path} holds no key in PEM form")]
    NotKey { path: PathBuf, source: rcgen::Error },
    #[error("{path} is no certificate that leaves can be made from")]
    NotIssuer { path: PathBuf, source: rcgen::Error },
}

/// Why there is no certificate for one host.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeafError {
    #[error("cannot make a certificate for {host}")]
    Make { host: String, source: rcgen::Error },
    #[error("cannot use the certificate for {host}")]
    Use { host: String, source: rustls::Error },
}

/// The operator's CA, and for which hosts it may be used.
pub struct Authority {
    /// `host` for every port, or `host:port`.
    hosts: Vec<String>,
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<String, (Arc<ServerConfig>, Instant)>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not what it should be.
    pub fn load(hosts: Vec<String>, cert: &Path, key: &Path) -> Result<Self, AuthorityError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| AuthorityError::Read { path: path.to_owned(), source })
        };
        let ca = CertificateDer::from_pem_slice(read(cert)?.as_bytes())
            .map_err(|_| AuthorityError::NotCertificate { path: cert.to_owned() })?;
        let pair = KeyPair::from_pem(&read(key)?)
            .map_err(|source| AuthorityError::NotKey { path: key.to_owned(), source })?;
        let issuer = Issuer::from_ca_cert_der(&ca, pair)
            .map_err(|source| AuthorityError::NotIssuer { path: cert.to_owned(), source })?;
        Ok(Self { hosts, ca, issuer, leaves: Mutex::default() })
    }

    /// Whether the operator lets us open the TLS of `host`.
    pub(super) fn opens(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|listed| {
            listed.eq_ignore_ascii_case(host) || listed.eq_ignore_ascii_case(&format!("{host}:{port}"))
        })
    }

    /// What this node shows as `host`.
    pub(super) fn leaf(&self, host: &str, now: SystemTime) -> Result<Arc<ServerConfig>, LeafError> {
        let mut leaves = self.leaves.lock();
        if let Some((leaf, made)) = leaves.get(host)
            && made.elapsed() < RENEWED_AFTER
        {
            return Ok(leaf.clone());
        }
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        let leaf = Arc::new(self.mint(host, now)?);
        leaves.insert(host.to_owned(), (leaf.clone(), Instant::now()));
        Ok(leaf)
    }

    fn mint(&self, host: &str, now: SystemTime) -> Result<ServerConfig, LeafError> {
        let make = |source| LeafError::Make { host: host.to_owned(), source };
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(make)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Flotilla on this node");
        params.not_before = (now - VALID_BEFORE).into();
        params.not_after = (now + VALID_FOR).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&pair, &self.issuer).map_err(make)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(vec![leaf.der().clone(), self.ca.clone()], key));
        let mut config = config.map_err(|source| LeafError::Use { host: host.to_owned(), source })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, IsCa};

    use super::*;

    /// A CA in two files.
    pub(crate) fn ca(dir: &Path) -> (PathBuf, PathBuf) {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "operator");
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
        fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
        fs::write(&key, pair.serialize_pem()).unwrap();
        (cert, key)
    }

    #[test]
    fn only_listed_hosts_are_opened_and_their_leaf_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = ca(dir.path());
        let authority = Authority::load(vec!["r.local".into(), "s.local:5000".into()], &cert, &key).unwrap();
        assert!(
            authority.opens("R.local", 443)
                && authority.opens("r.local", 8443)
                && authority.opens("s.local", 5000)
        );
        assert!(!authority.opens("s.local", 443) && !authority.opens("evil.r.local", 443));
        let now = SystemTime::now();
        let leaf = authority.leaf("r.local", now).unwrap();
        assert!(Arc::ptr_eq(&leaf, &authority.leaf("r.local", now).unwrap()));
        assert!(
            authority.leaf("127.0.0.1", now).is_ok() && authority.leaf("no host", now).is_ok_and(|_| true)
        );
    }

    #[test]
    fn files_that_are_no_ca_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = ca(dir.path());
        let load = |cert: &Path, key: &Path| Authority::load(vec![], cert, key).unwrap_err().to_string();
        assert!(load(&dir.path().join("gone"), &key).contains("gone"));
        assert!(load(&key, &key).contains("no certificate"));
        assert!(load(&cert, &cert).contains("no key"));
    }
}
