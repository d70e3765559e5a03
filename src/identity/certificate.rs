//! What Flotilla reads in a certificate; chains and signatures are webpki's business.

use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::{extensions::GeneralName, prelude::FromDer, time::ASN1Time};

/// The parts of one certificate that decide who somebody is and for how long.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) subject: String,
    /// DNS names that are no wildcards, as they stand in the certificate.
    pub(super) dns_names: Vec<String>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) is_ca: bool,
}

/// Why a certificate names nobody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("no certificate was presented")]
    NoCertificate,
    #[error("the certificate is not X.509 v3 in DER: {0}")]
    Malformed(String),
    #[error("the certificate of `{0}` has no DNS name (subjectAltName) that could be a member's name")]
    NoDnsName(String),
}

/// The name of whoever presented `certs`: the first DNS name of the first certificate.
pub fn peer_name(certs: &[CertificateDer<'_>]) -> Result<String, NameError> {
    let facts = facts(certs.first().ok_or(NameError::NoCertificate)?)?;
    facts.name().ok_or(NameError::NoDnsName(facts.subject))
}

pub(super) fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, NameError> {
    let malformed = |error: &dyn std::fmt::Display| NameError::Malformed(error.to_string());
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|error| malformed(&error))?;
    let names = parsed.subject_alternative_name().map_err(|error| malformed(&error))?;
    #[expect(clippy::wildcard_enum_match_arm, reason = "ten kinds of names, of which one is asked for")]
    let dns_names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) if !name.contains('*') => Some((*name).to_owned()),
        _ => None,
    });
    let constraints = parsed.basic_constraints().map_err(|error| malformed(&error))?;
    Ok(Facts {
        subject: parsed.subject().to_string(),
        dns_names: dns_names.collect(),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        is_ca: constraints.is_some_and(|constraints| constraints.value.ca),
    })
}

impl Facts {
    /// The first DNS name, in lower case since DNS names do not tell cases apart.
    pub(super) fn name(&self) -> Option<String> {
        let name = self.dns_names.first()?.to_ascii_lowercase();
        matches!(ServerName::try_from(name.as_str()), Ok(ServerName::DnsName(_))).then_some(name)
    }
}

fn time(at: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(at.timestamp().unsigned_abs());
    let shifted = if at.timestamp() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    shifted.unwrap_or(SystemTime::UNIX_EPOCH)
}
