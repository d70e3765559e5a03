//! HTTP clients over verified TLS: one for most hosts, others for hosts with a CA or certificate of their own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::hosts::{ClientPem, Spec};

pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Outgoing>;

/// What is sent: nothing, a form, or what a client pushes.
pub type Outgoing = UnsyncBoxBody<Bytes, hyper::Error>;

/// A body that is here already.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Outgoing {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Idle connections kept for one host: as many as a pull of one image commonly uses at once.
const IDLE_PER_HOST: usize = 8;
/// Below the 60 s after which common load balancers close an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Limits the head of an answer (registries send 2 KiB) and what is read at once from a body: four of the largest
/// chunks that the kernel hands over.
const BUFFER_LEN_MAX: usize = 256 << 10;
/// Headers in an answer; registries behind two proxies send 40.
const HEADERS_MAX: usize = 128;

/// Makes clients that trust the system's roots and whatever a host adds.
#[derive(Clone)]
pub(super) struct Tls {
    system: Arc<RootCertStore>,
    connect: Duration,
    plain: HttpClient,
}

/// The clients for one endpoint.
#[derive(Clone)]
pub(super) struct Clients {
    /// For the endpoint itself; may present a client certificate.
    pub(super) own: HttpClient,
    /// For wherever it sends us: the same roots, no client certificate.
    pub(super) abroad: HttpClient,
}

impl Tls {
    /// Reads the system's roots.
    pub(super) fn new(connect: Duration) -> Result<Self, rustls::Error> {
        let mut system = RootCertStore::empty();
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::warn!(%error, "cannot read a system root certificate");
        }
        let (known, _) = system.add_parsable_certificates(loaded.certs);
        if known == 0 {
            tracing::warn!(
                "the system has no root certificates: install ca-certificates to reach public registries"
            );
        }
        let system = Arc::new(system);
        let config = config(system.clone(), None)?;
        Ok(Self { system, connect, plain: client(config, connect) })
    }

    /// Clients for `spec`; an error is a line that names what is wrong.
    pub(super) fn clients(&self, spec: &Spec) -> Result<Clients, String> {
        if spec.ca_pem.is_empty() && spec.client_pems.is_empty() && spec.dial_timeout.is_none() {
            return Ok(Clients { own: self.plain.clone(), abroad: self.plain.clone() });
        }
        let mut roots = (*self.system).clone();
        for pem in &spec.ca_pem {
            add_roots(&mut roots, pem).map_err(|why| format!("a `ca` of {} {why}", spec.base))?;
        }
        let roots = Arc::new(roots);
        let build = |own| config(roots.clone(), own).map_err(|error| error.to_string());
        let connect = spec.dial_timeout.unwrap_or(self.connect);
        let abroad = client(build(None)?, connect);
        if spec.client_pems.is_empty() {
            return Ok(Clients { own: abroad.clone(), abroad });
        }
        let wrong = |pem: &ClientPem, why| format!("client certificate {}: {why}", pem.path.display());
        let read = |pem| OwnCertificate::read(pem).map_err(|why| wrong(pem, why));
        let own = spec.client_pems.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Clients { own: client(build(Some(OwnCertificates(own)))?, connect), abroad })
    }
}

fn add_roots(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), String> {
    let mut added = 0;
    for cert in CertificateDer::pem_slice_iter(pem) {
        let cert = cert.map_err(|error| format!("is no PEM: {error}"))?;
        roots.add(cert).map_err(|error| format!("is no CA certificate: {error}"))?;
        added += 1;
    }
    if added == 0 { Err("holds no certificate".to_owned()) } else { Ok(()) }
}

/// A client certificate that may be shown.
#[derive(Debug)]
struct OwnCertificate {
    key: Arc<CertifiedKey>,
    /// The names of those who issued it and its chain, in DER.
    issuers: Vec<Vec<u8>>,
}

impl OwnCertificate {
    fn read(pem: &ClientPem) -> Result<Self, String> {
        let certs = CertificateDer::pem_slice_iter(&pem.cert).collect::<Result<Vec<_>, _>>();
        let certs = certs.map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| error.to_string())?;
        let issuer = |cert: &CertificateDer<'_>| {
            let (_, cert) = x509_parser::parse_x509_certificate(cert).map_err(|error| error.to_string())?;
            Ok::<_, String>(cert.issuer().as_raw().to_vec())
        };
        let issuers = certs.iter().map(issuer).collect::<Result<_, _>>()?;
        let key = CertifiedKey::from_der(certs, key, &provider()).map_err(|error| error.to_string())?;
        Ok(Self { key: Arc::new(key), issuers })
    }
}

/// Those for one host. It is shown the first that was issued by a CA that it names, as containerd does it.
#[derive(Debug)]
struct OwnCertificates(Vec<OwnCertificate>);

impl ResolvesClientCert for OwnCertificates {
    fn resolve(&self, cas: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let is_known = |own: &OwnCertificate| own.issuers.iter().any(|issuer| cas.contains(&&issuer[..]));
        let fits = |own: &&OwnCertificate| {
            own.key.key.choose_scheme(schemes).is_some() && (cas.is_empty() || is_known(own))
        };
        self.0.iter().find(fits).map(|own| own.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

fn config(roots: Arc<RootCertStore>, own: Option<OwnCertificates>) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(own)),
        None => builder.with_no_client_auth(),
    })
}

fn client(config: ClientConfig, connect: Duration) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect));
    // A peer that vanished without a word is noticed while a body is waited for; also the stall timeout's work,
    // but idle pooled connections have only this.
    tcp.set_keepalive(Some(Duration::from_secs(15)));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http1_max_buf_size(BUFFER_LEN_MAX)
        .http1_max_headers(HEADERS_MAX)
        .build(connector)
}
