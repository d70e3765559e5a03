//! `flotilla certs`: a certificate authority and node certificates for people who have none.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use x509_parser::prelude::FromDer;

use crate::mesh;

/// Where the daemon looks for its files if no setting names others.
const TLS_DIR: &str = "/etc/flotilla/tls";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A CA outlives the machines; replacing it means touching every node.
const CA_DAYS: u32 = 3650;
/// A certificate of today is valid on a node whose clock is an hour behind.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3600);
/// A hundred years; X.509 ends in 9999.
const DAYS_MAX: i64 = 36_500;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a certificate authority: ca.pem, which every node gets, and ca-key.pem, which none does
    Ca {
        /// Folder to write to; made if it is absent
        #[arg(long)]
        out: PathBuf,
        /// What the CA is called in its certificate
        #[arg(long, default_value = "Flotilla CA")]
        name: String,
    },
    /// Make a node's certificate: node.pem, node-key.pem and a copy of ca.pem
    Node {
        /// Folder with ca.pem and ca-key.pem
        #[arg(long)]
        ca_dir: PathBuf,
        /// Folder to write to, one for each node; made if it is absent
        #[arg(long)]
        out: PathBuf,
        /// The node's name in the mesh: a DNS name such as its host name
        #[arg(long)]
        name: String,
        /// Another DNS name or IP address by which others dial it (as in `mesh.members`); repeat for more
        #[arg(long = "san", value_name = "HOST-or-IP")]
        sans: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
        days: u32,
    },
}

/// Why no certificate was made. Nothing that was there before has been touched.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    #[error("{} exists and is not overwritten: choose another --out, or move it away", path.display())]
    Exists { path: PathBuf },
    #[error("cannot make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}: --ca-dir is the folder that `flotilla certs ca` wrote to", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not the certificate of a CA", path.display())]
    NotCa { path: PathBuf },
    #[error("{} is not a private key that can sign", path.display())]
    NotKey {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("{} does not belong to {}", key.display(), ca.display())]
    KeyMismatch { ca: PathBuf, key: PathBuf },
    #[error("{} has expired: make a new CA", path.display())]
    CaExpired { path: PathBuf },
    #[error("`{0}` cannot be a node's name: use a DNS name in lower case, such as its host name")]
    Name(String),
    #[error("`{0}` is neither a DNS name nor an IP address")]
    San(String),
    #[error("cannot make the certificate")]
    Make(#[source] rcgen::Error),
    #[error("cannot print what was made")]
    Print(#[source] io::Error),
}

/// Does what `args` says as of `now`, and prints what was made and where it goes.
pub fn run(args: &Args, now: SystemTime, out: &mut impl Write) -> Result<(), CertsError> {
    match &args.command {
        Command::Ca { out: dir, name } => make_ca(dir, name, now, out),
        Command::Node { ca_dir, out: dir, name, sans, days } => {
            let authority = Authority::read(ca_dir, now)?;
            let node = NodeWanted { name, sans, days: *days };
            make_node(&authority, dir, &node, now, out)
        }
    }
}

fn make_ca(dir: &Path, name: &str, now: SystemTime, out: &mut impl Write) -> Result<(), CertsError> {
    let (ca, key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
    refuse_existing(&[&ca, &key])?;
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertsError::Make)?;
    let mut params = params(name, now, now + DAY * CA_DAYS);
    // No CA below this one: it signs nodes.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&pair).map_err(CertsError::Make)?;
    make_folder(dir)?;
    write_new(&key, &pair.serialize_pem(), 0o600)?;
    write_new(&ca, &certificate.pem(), 0o644)?;
    write!(
        out,
        "Made the CA `{name}`, valid for {CA_DAYS} days:\n\
         \x20 {}      its certificate: every node gets it as {TLS_DIR}/ca.pem\n\
         \x20 {}  its key: keep it off the nodes; whoever has it can join the mesh\n\
         Next, for each node: flotilla certs node --ca-dir {} --out NODE-FOLDER --name NODE --san ADDRESS\n",
        ca.display(),
        key.display(),
        dir.display()
    )
    .map_err(CertsError::Print)
}

struct NodeWanted<'a> {
    name: &'a str,
    sans: &'a [String],
    days: u32,
}

fn make_node(
    authority: &Authority,
    dir: &Path,
    wanted: &NodeWanted<'_>,
    now: SystemTime,
    out: &mut impl Write,
) -> Result<(), CertsError> {
    let NodeWanted { name, sans, days } = wanted;
    if !mesh::is_name(name) {
        return Err(CertsError::Name((*name).to_owned()));
    }
    if let Some(odd) = sans.iter().find(|san| ServerName::try_from(san.as_str()).is_err()) {
        return Err(CertsError::San(odd.clone()));
    }
    let (cert, key, ca) = (dir.join("node.pem"), dir.join("node-key.pem"), dir.join("ca.pem"));
    refuse_existing(&[&cert, &key])?;
    let copy_ca = match fs::read_to_string(&ca) {
        Ok(there) if there == authority.pem => false,
        Ok(_) => return Err(CertsError::Exists { path: ca }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(source) => return Err(CertsError::Write { path: ca, source }),
    };
    let not_after = (now + DAY * *days).min(authority.not_after);
    let (node, node_key) = issue(authority, wanted, now, not_after)?;
    make_folder(dir)?;
    write_new(&key, &node_key, 0o600)?;
    write_new(&cert, &node, 0o644)?;
    if copy_ca {
        write_new(&ca, &authority.pem, 0o644)?;
    }
    let days_left = not_after.duration_since(now).unwrap_or_default().as_secs() / DAY.as_secs();
    let names = [&[(*name).to_owned()], *sans].concat().join(", ");
    write!(
        out,
        "Made a certificate for {names}, valid for {days_left} days:\n\
         \x20 {}, {} and {}\n\
         Put all three into {TLS_DIR} on the node `{name}`, the key readable by root only (mode 600).\n",
        cert.display(),
        key.display(),
        ca.display()
    )
    .map_err(CertsError::Print)
}

/// A certificate and its key, both as PEM.
fn issue(
    authority: &Authority,
    wanted: &NodeWanted<'_>,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<(String, String), CertsError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertsError::Make)?;
    let mut params = params(wanted.name, now, not_after);
    // The first name is the node's name in the mesh.
    let mut names = vec![wanted.name.to_owned()];
    names.extend(wanted.sans.iter().filter(|san| *san != wanted.name).cloned());
    params.subject_alt_names = CertificateParams::new(names).map_err(CertsError::Make)?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A member dials and is dialed.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&pair, &authority.issuer).map_err(CertsError::Make)?;
    Ok((certificate.pem(), pair.serialize_pem()))
}

fn params(common_name: &str, now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (now - CLOCK_SKEW_MAX).into();
    params.not_after = not_after.into();
    params
}

/// A CA that can sign now.
struct Authority {
    pem: String,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn read(dir: &Path, now: SystemTime) -> Result<Self, CertsError> {
        let (ca, key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
        let pem = fs::read_to_string(&ca).map_err(|source| CertsError::Read { path: ca.clone(), source })?;
        let key_pem =
            fs::read_to_string(&key).map_err(|source| CertsError::Read { path: key.clone(), source })?;
        let not_ca = || CertsError::NotCa { path: ca.clone() };
        // While a CA is replaced ca.pem holds several; the key belongs to the first.
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| not_ca())?;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der).map_err(|_| not_ca())?;
        if !parsed.is_ca() {
            return Err(not_ca());
        }
        let pair =
            KeyPair::from_pem(&key_pem).map_err(|source| CertsError::NotKey { path: key.clone(), source })?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(CertsError::KeyMismatch { ca, key });
        }
        let expiry = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(expiry);
        if not_after <= now {
            return Err(CertsError::CaExpired { path: ca });
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|_| not_ca())?;
        Ok(Self { pem, not_after, issuer })
    }
}

fn refuse_existing(paths: &[&Path]) -> Result<(), CertsError> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(CertsError::Exists { path: (*path).to_owned() }),
        None => Ok(()),
    }
}

fn make_folder(dir: &Path) -> Result<(), CertsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| CertsError::Folder { path: dir.to_owned(), source })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            CertsError::Exists { path }
        } else {
            CertsError::Write { path, source }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::identity;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn certs(dir: &Path, line: &str) -> Result<String, CertsError> {
        let line = line.replace("DIR", dir.to_str().unwrap());
        let args = Line::try_parse_from(["certs"].into_iter().chain(line.split(' '))).unwrap().args;
        let mut printed = Vec::new();
        run(&args, SystemTime::now(), &mut printed)?;
        Ok(String::from_utf8(printed).unwrap())
    }

    fn load(dir: &Path) -> Result<identity::Identity, identity::IdentityError> {
        let settings = identity::Settings {
            ca: dir.join("ca.pem"),
            cert: dir.join("node.pem"),
            key: dir.join("node-key.pem"),
        };
        identity::load(&settings, SystemTime::now())
    }

    #[test]
    fn what_is_made_is_an_identity_and_its_keys_are_secret() {
        let dir = tempfile::tempdir().unwrap();
        let printed = certs(dir.path(), "ca --out DIR/ca").unwrap();
        assert!(printed.contains("ca-key.pem") && printed.contains("/etc/flotilla/tls/ca.pem"), "{printed}");
        let printed =
            certs(dir.path(), "node --ca-dir DIR/ca --out DIR/n5 --name node5 --san 10.0.0.5 --days 30")
                .unwrap();
        assert!(printed.contains("node5, 10.0.0.5, valid for 30 days"), "{printed}");
        for key in ["ca/ca-key.pem", "n5/node-key.pem"] {
            let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let identity = load(&dir.path().join("n5")).unwrap();
        assert_eq!(identity.name(), "node5");
        let left = identity.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left > DAY * 29 && left <= DAY * 30);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        certs(dir.path(), "ca --out DIR").unwrap();
        let before = fs::read(dir.path().join("ca-key.pem")).unwrap();
        assert!(matches!(certs(dir.path(), "ca --out DIR"), Err(CertsError::Exists { .. })));
        assert_eq!(fs::read(dir.path().join("ca-key.pem")).unwrap(), before);

        certs(dir.path(), "node --ca-dir DIR --out DIR --name a").unwrap();
        let again = certs(dir.path(), "node --ca-dir DIR --out DIR --name b");
        assert!(matches!(again, Err(CertsError::Exists { .. })));
        certs(dir.path(), "ca --out DIR/other").unwrap();
        fs::remove_file(dir.path().join("node.pem")).unwrap();
        fs::remove_file(dir.path().join("node-key.pem")).unwrap();
        let foreign = certs(dir.path(), "node --ca-dir DIR/other --out DIR --name a");
        assert!(matches!(foreign, Err(CertsError::Exists { path }) if path.ends_with("ca.pem")));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let node = |rest: &str| certs(dir.path(), &format!("node --ca-dir DIR --out DIR/n {rest}"));
        assert!(matches!(node("--name a"), Err(CertsError::Read { .. })));
        certs(dir.path(), "ca --out DIR").unwrap();
        assert!(matches!(node("--name Node_5!"), Err(CertsError::Name(_))));
        assert!(matches!(node("--name a --san http://x"), Err(CertsError::San(_))));
        certs(dir.path(), "ca --out DIR/other").unwrap();
        fs::copy(dir.path().join("other/ca-key.pem"), dir.path().join("ca-key.pem")).unwrap();
        assert!(matches!(node("--name a"), Err(CertsError::KeyMismatch { .. })));
        assert!(!dir.path().join("n").exists());
    }
}
