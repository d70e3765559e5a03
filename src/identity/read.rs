//! From three PEM files to what handshakes use. Every fault is one variant, and its line names the file
//! and the mend.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ServerSessionMemoryCache, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use super::{
    Settings,
    certificate::{self, Facts, NameError},
};

/// A PEM file of certificates is some kilobytes; whoever names a disk by mistake should learn it at once.
const PEM_LEN_MAX: u64 = 1024 * 1024;

/// Resumable sessions kept on either side, about 2 KiB each: one for each connection that the members of
/// a mesh of a thousand keep to this node, with some to spare.
const SESSIONS_MAX: usize = 4096;

/// One provider for the whole program, named here so that no build feature can change it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// Between nodes only TLS 1.3: both ends are Flotilla, and 1.2 would send certificates in the clear.
static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A certificate is near its end in the last tenth of its life, and not before the last thirty days: who renews by
/// machine does so after two thirds of it, and by hand a month is notice enough.
const NEAR_END_SHARE: u32 = 10;
const NEAR_END_MAX: Duration = Duration::from_hours(30 * 24);

/// Why this node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{} is absent: put it there, or make one with `flotilla certs`", path.display())]
    Absent { path: PathBuf },
    #[error("{} is there but {} is absent: a certificate needs its key, put the other half beside it", present.display(), absent.display())]
    HalfPair { present: PathBuf, absent: PathBuf },
    #[error("cannot read {}: let the daemon's user read it", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is larger than {PEM_LEN_MAX} bytes: it is no PEM file of certificates", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not valid PEM: write it again", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{} holds no certificate: it needs at least one `BEGIN CERTIFICATE`", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key: it needs one `BEGIN PRIVATE KEY`, without a passphrase", path.display())]
    NoKey { path: PathBuf },
    #[error("the key in {} cannot be used: make an EC P-256, P-384, Ed25519 or RSA key of 2048 bits or more", path.display())]
    UnusableKey {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("the key {} does not belong to the certificate {}: put the pair in place that was made together", key.display(), cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("a certificate in {} cannot be read: issue it again", path.display())]
    BadCertificate {
        path: PathBuf,
        #[source]
        source: NameError,
    },
    #[error("{} expired at {}: issue a new one (`flotilla certs node`), or set this node's clock", path.display(), date(*not_after))]
    Expired { path: PathBuf, not_after: SystemTime },
    #[error("{} is not valid before {}, and this node's clock says {}: set the clock, or wait", path.display(), date(*not_before), date(*now))]
    NotYetValid { path: PathBuf, not_before: SystemTime, now: SystemTime },
    #[error("{} has no DNS name (subjectAltName): issue one whose first DNS name is this node's name", path.display())]
    NoName { path: PathBuf },
    #[error("{} is a CA's certificate (`{subject}`), not a node's: put a certificate there that the CA has issued", path.display())]
    IsCa { path: PathBuf, subject: String },
    #[error("`{subject}` in {} is not a CA: put the CA's own certificate there", path.display())]
    NotCa { path: PathBuf, subject: String },
    #[error("every CA in {} has expired, the last at {}: make a new CA and certificates of it", path.display(), date(*not_after))]
    CaExpired { path: PathBuf, not_after: SystemTime },
    #[error("{} was not issued by a CA in {}: add its CA there, or its intermediates to the certificate file", cert.display(), ca.display())]
    UnknownCa { cert: PathBuf, ca: PathBuf },
    #[error("{} is not for {usage}: a member is client and server, issue it with both extended key usages, serverAuth and clientAuth", path.display())]
    WrongUsage { path: PathBuf, usage: &'static str },
    #[error("{} is refused by the checks that other members make: issue it again", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("{} names `{new}` but this daemon runs as `{running}`: restart it to change its name", path.display())]
    Renamed { path: PathBuf, new: String, running: String },
}

/// A proven set of files, and the configs that follow from it.
pub(super) struct Material {
    pub(super) name: String,
    pub(super) term: Term,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

/// For how long a chain of certificates is good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term {
    /// From when on its end is near.
    pub(super) near_end: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Term {
    fn of(facts: &Facts) -> Self {
        let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
        let notice = (life / NEAR_END_SHARE).min(NEAR_END_MAX);
        Self { near_end: facts.not_after - notice, not_after: facts.not_after }
    }
}

impl Material {
    pub(super) fn same_files(&self, other: &Self) -> bool {
        self.chain == other.chain
            && self.roots == other.roots
            && self.key.secret_der() == other.key.secret_der()
    }

    /// What is legal but unwise.
    pub(super) fn warn(&self, settings: &Settings) {
        let key = &settings.key;
        let mode = std::fs::metadata(key).map(|meta| meta.permissions().mode()).unwrap_or(0);
        if mode & 0o077 != 0 {
            tracing::warn!(
                "{} can be read by others (mode {:o}): chmod 600 it",
                key.display(),
                mode & 0o7777
            );
        }
    }
}

/// Reads the three files and proves them as other members will.
pub(super) fn read(settings: &Settings, now: SystemTime) -> Result<Material, IdentityError> {
    let pems = read_files(settings)?;
    let chain = certificates(&settings.cert, &pems.cert)?;
    let key = private_key(&settings.key, &pems.key)?;
    let roots = trusted(&settings.ca, certificates(&settings.ca, &pems.ca)?, now)?;
    check_pair(settings, &chain, &key)?;
    let (name, term) = check_chain(&settings.cert, &chain, now)?;
    let (server, client) = configs(settings, &Pair { chain: &chain, key: &key, name: &name }, &roots, now)?;
    Ok(Material { name, term, server, client, chain, key, roots })
}

/// The three files as they are.
struct Pems {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

fn read_files(settings: &Settings) -> Result<Pems, IdentityError> {
    let (cert, key) = (read_pem(&settings.cert)?, read_pem(&settings.key)?);
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return Err(IdentityError::Absent { path: settings.cert.clone() }),
        (Some(_), None) => return Err(half(&settings.cert, &settings.key)),
        (None, Some(_)) => return Err(half(&settings.key, &settings.cert)),
    };
    let ca = read_pem(&settings.ca)?.ok_or_else(|| IdentityError::Absent { path: settings.ca.clone() })?;
    Ok(Pems { ca, cert, key })
}

fn half(present: &Path, absent: &Path) -> IdentityError {
    IdentityError::HalfPair { present: present.to_owned(), absent: absent.to_owned() }
}

/// `None` if there is no such file.
fn read_pem(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut pem = Vec::new();
    file.take(PEM_LEN_MAX + 1).read_to_end(&mut pem).map_err(unreadable)?;
    if pem.len() as u64 > PEM_LEN_MAX {
        return Err(IdentityError::TooLarge { path: path.to_owned() });
    }
    Ok(Some(pem))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| IdentityError::Malformed { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(IdentityError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| {
        let path = path.to_owned();
        if matches!(source, rustls::pki_types::pem::Error::NoItemsFound) {
            IdentityError::NoKey { path }
        } else {
            IdentityError::Malformed { path, source }
        }
    })
}

fn facts(path: &Path, certificate: &CertificateDer<'_>) -> Result<Facts, IdentityError> {
    certificate::facts(certificate)
        .map_err(|source| IdentityError::BadCertificate { path: path.to_owned(), source })
}

/// The roots that may vouch for somebody now. webpki does not look at the dates of a trust anchor, so an
/// expired one is left out here; while a CA is replaced the other one goes on.
fn trusted(
    path: &Path,
    roots: Vec<CertificateDer<'static>>,
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut trusted = Vec::with_capacity(roots.len());
    let mut last_expiry = SystemTime::UNIX_EPOCH;
    for root in roots {
        let facts = facts(path, &root)?;
        if !facts.is_ca {
            return Err(IdentityError::NotCa { path: path.to_owned(), subject: facts.subject });
        }
        last_expiry = last_expiry.max(facts.not_after);
        if now <= facts.not_after {
            trusted.push(root);
        }
    }
    if trusted.is_empty() {
        return Err(IdentityError::CaExpired { path: path.to_owned(), not_after: last_expiry });
    }
    Ok(trusted)
}

fn check_pair(
    settings: &Settings,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(), IdentityError> {
    let unusable = |source| IdentityError::UnusableKey { path: settings.key.clone(), source };
    let signing = PROVIDER.key_provider.load_private_key(key.clone_key()).map_err(unusable)?;
    match CertifiedKey::new(chain.to_vec(), signing).keys_match() {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(IdentityError::KeyMismatch { cert: settings.cert.clone(), key: settings.key.clone() })
        }
        Err(source) => Err(IdentityError::Refused { path: settings.cert.clone(), source }),
    }
}

/// The node's name, and the term of that certificate of its chain which expires first.
fn check_chain(
    path: &Path,
    chain: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(String, Term), IdentityError> {
    let mut name = None;
    let mut first: Option<Term> = None;
    for (position, certificate) in chain.iter().enumerate() {
        let facts = facts(path, certificate)?;
        if now > facts.not_after {
            return Err(IdentityError::Expired { path: path.to_owned(), not_after: facts.not_after });
        }
        if now < facts.not_before {
            let not_before = facts.not_before;
            return Err(IdentityError::NotYetValid { path: path.to_owned(), not_before, now });
        }
        let term = Term::of(&facts);
        first = first.filter(|first| first.not_after <= term.not_after).or(Some(term));
        if position == 0 {
            if facts.is_ca {
                return Err(IdentityError::IsCa { path: path.to_owned(), subject: facts.subject });
            }
            name = facts.name();
        }
    }
    match (name, first) {
        (Some(name), Some(first)) => Ok((name, first)),
        _ => Err(IdentityError::NoName { path: path.to_owned() }),
    }
}

struct Pair<'a> {
    chain: &'a [CertificateDer<'static>],
    key: &'a PrivateKeyDer<'static>,
    name: &'a str,
}

/// Makes both configs, and shows our own certificate to the verifiers that every member uses.
fn configs(
    settings: &Settings,
    pair: &Pair<'_>,
    roots: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), IdentityError> {
    let cert_refused = |source| IdentityError::Refused { path: settings.cert.clone(), source };
    let ca_refused = |source| IdentityError::Refused { path: settings.ca.clone(), source };
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(ca_refused)?;
    }
    let store = Arc::new(store);
    let of_builder =
        |error: rustls::server::VerifierBuilderError| ca_refused(rustls::Error::General(error.to_string()));
    let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), PROVIDER.clone())
        .build()
        .map_err(of_builder)?;
    let servers =
        WebPkiServerVerifier::builder_with_provider(store, PROVIDER.clone()).build().map_err(of_builder)?;
    prove(settings, pair, (&*servers, &*clients), now)?;

    let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(VERSIONS)
        .map_err(cert_refused)?
        .with_client_cert_verifier(clients)
        .with_single_cert(pair.chain.to_vec(), pair.key.clone_key())
        .map_err(cert_refused)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    server.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(VERSIONS)
        .map_err(cert_refused)?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(pair.chain.to_vec(), pair.key.clone_key())
        .map_err(cert_refused)?;
    client.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok((Arc::new(server), Arc::new(client)))
}

fn prove(
    settings: &Settings,
    pair: &Pair<'_>,
    (servers, clients): (&dyn ServerCertVerifier, &dyn ClientCertVerifier),
    now: SystemTime,
) -> Result<(), IdentityError> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = UnixTime::since_unix_epoch(since);
    let (leaf, intermediates) = pair.chain.split_first().expect("check_chain found a name in the first");
    let name = ServerName::try_from(pair.name).expect("Facts::name gives DNS names only");
    servers
        .verify_server_cert(leaf, intermediates, &name, &[], now)
        .map_err(|error| refused(settings, "serverAuth", error))?;
    clients
        .verify_client_cert(leaf, intermediates, now)
        .map_err(|error| refused(settings, "clientAuth", error))?;
    Ok(())
}

fn refused(settings: &Settings, usage: &'static str, source: rustls::Error) -> IdentityError {
    use CertificateError as Bad;
    let path = settings.cert.clone();
    let rustls::Error::InvalidCertificate(bad) = &source else {
        return IdentityError::Refused { path, source };
    };
    // A CA of the same name but another key ends in BadSignature.
    if matches!(bad, Bad::UnknownIssuer | Bad::BadSignature) {
        return IdentityError::UnknownCa { cert: path, ca: settings.ca.clone() };
    }
    if matches!(bad, Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }) {
        return IdentityError::WrongUsage { path, usage };
    }
    IdentityError::Refused { path, source }
}

/// RFC 3339, to the second.
#[must_use]
pub fn date(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "a date out of range".to_owned(), |at| format!("{at:.0}"))
}
