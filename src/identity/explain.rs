//! TLS errors in the words of whoever has to mend them.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' enums grow; what has no words here says its own"
)]

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::stream::{Side, TlsFailure};

/// Errors do not nest deeper than this; a chain that does is a loop.
const CHAIN_LEN_MAX: usize = 32;

/// What went wrong, in one line without a full stop. Looks through the whole chain for an error of TLS;
/// without one, the innermost message is the answer.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut side = None;
    let mut innermost = String::new();
    let mut next = Some(error);
    for _ in 0..CHAIN_LEN_MAX {
        let Some(error) = next else { break };
        if let Some(failure) = error.downcast_ref::<TlsFailure>() {
            side = Some(failure.side);
        } else if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return of_tls(error, side);
        } else {
            innermost = error.to_string();
        }
        // An io::Error hides the error that it carries: its source() is that error's source.
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = carried.map(|carried| carried as &(dyn Error + 'static)).or_else(|| error.source());
    }
    if innermost == "tls handshake eof" {
        return closed(side).to_owned();
    }
    innermost
}

fn closed(side: Option<Side>) -> &'static str {
    match side {
        Some(Side::Client) => {
            "the other side closed the connection instead of answering in TLS: something else listens there, or it is shutting down"
        }
        Some(Side::Server) | None => "the other side hung up in the middle of the TLS handshake",
    }
}

fn of_tls(error: &rustls::Error, side: Option<Side>) -> String {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => match side {
            Some(Side::Server) => {
                "the other side spoke plaintext to a TLS port: use TLS and a node certificate"
            }
            Some(Side::Client) => {
                "we spoke TLS to a plaintext port: whoever listens there is no Flotilla mesh port"
            }
            None => "one side spoke plaintext to a TLS port",
        }
        .to_owned(),
        Tls::NoCertificatesPresented => {
            "the other side is missing a client certificate: it needs a node certificate of our CA".to_owned()
        }
        Tls::PeerIncompatible(_) => {
            "the other side does not speak TLS 1.3 as members do: no Flotilla of this version".to_owned()
        }
        Tls::InvalidCertificate(error) => of_their_certificate(error),
        Tls::AlertReceived(alert) => of_alert(*alert),
        other => format!("TLS failed: {other}"),
    }
}

fn of_their_certificate(error: &CertificateError) -> String {
    use CertificateError as Bad;
    match error {
        Bad::Expired => "the other side's certificate has expired (or our clock is wrong)".to_owned(),
        Bad::ExpiredContext { time, not_after } => format!(
            "the other side's certificate has expired at {} and our clock says {}",
            date(not_after.as_secs()),
            date(time.as_secs())
        ),
        Bad::NotValidYet => {
            "the other side's certificate is not valid yet: clock skew between the nodes?".to_owned()
        }
        Bad::NotValidYetContext { time, not_before } => format!(
            "the other side's certificate is not valid before {} and our clock says {}: clock skew between the nodes?",
            date(not_before.as_secs()),
            date(time.as_secs())
        ),
        Bad::UnknownIssuer | Bad::BadSignature => {
            "the other side's certificate is of an unknown CA: it is not issued by one in our ca.pem".to_owned()
        }
        Bad::NotValidForName => {
            "wrong name (SAN): the other side's certificate does not name whom we dialed".to_owned()
        }
        Bad::NotValidForNameContext { expected, presented } => format!(
            "wrong name (SAN): we dialed {} but the other side's certificate names {}",
            expected.to_str(),
            if presented.is_empty() { "nobody".to_owned() } else { presented.join(", ") }
        ),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            "wrong usage (EKU): the other side's certificate lacks serverAuth or clientAuth, a member needs both"
                .to_owned()
        }
        other => format!("the other side's certificate is refused: {other}"),
    }
}

/// What the other side thinks of us.
fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    let known = match alert {
        Alert::UnknownCA => "the other side does not know the CA of our certificate (unknown CA)",
        Alert::CertificateExpired => {
            "the other side says that our certificate has expired or is not valid yet (or the clocks differ)"
        }
        Alert::CertificateRequired => "the other side asks for a client certificate and we have none",
        Alert::BadCertificate => {
            "the other side refused our certificate: it does not name (SAN) the node that was dialed"
        }
        Alert::UnsupportedCertificate => {
            "the other side refused our certificate's usage (EKU): it needs serverAuth and clientAuth"
        }
        Alert::DecryptError => {
            "the other side could not verify our certificate's signature: its CA has the same name but another key"
        }
        Alert::ProtocolVersion => "the other side does not speak TLS 1.3",
        Alert::NoApplicationProtocol => "the other side speaks TLS but neither h2 nor http/1.1",
        other => return format!("the other side ended TLS: {other:?}"),
    };
    known.to_owned()
}

/// RFC 3339, to the second.
fn date(unix_seconds: u64) -> String {
    i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "a date out of range".to_owned(), |at| at.to_string())
}
