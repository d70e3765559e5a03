//! Where a redirect may lead, and what may be carried there. Decided here, followed by `exchange`.

use url::Url;

/// Most hops for one request; what browsers and Go's client allow.
pub(super) const MAX_HOPS: usize = 10;

/// Longest `Location` taken. Signed addresses of object stores are 1 to 3 KiB.
const MAX_LOCATION_LEN: usize = 8 << 10;

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedirectError {
    #[error("more than {MAX_HOPS} redirects")]
    TooMany,
    #[error("a redirect without an address that can be followed")]
    NoAddress,
    #[error("it leads from TLS to plain HTTP at {0}")]
    Downgrade(String),
    #[error("it leads to plain HTTP at {0}, which registry.plain_http does not name")]
    Plain(String),
}

/// The next address of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) url: Url,
    /// Another scheme, host or port: credentials and headers of the registry stay behind.
    pub(super) foreign: bool,
}

/// Decides where `location` leads from `from`. `plain_allowed` says which hosts may be asked in the clear.
///
/// # Errors
/// An address that cannot or must not be followed.
pub(super) fn next_hop(
    from: &Url,
    location: &str,
    plain_allowed: impl FnOnce(&Url) -> bool,
) -> Result<Hop, RedirectError> {
    if location.len() > MAX_LOCATION_LEN {
        return Err(RedirectError::NoAddress);
    }
    let mut url = from.join(location).map_err(|_| RedirectError::NoAddress)?;
    url.set_fragment(None);
    let carries_login = !url.username().is_empty() || url.password().is_some();
    if url.host_str().is_none() || carries_login {
        return Err(RedirectError::NoAddress);
    }
    match (from.scheme(), url.scheme()) {
        (_, "https") => {}
        ("https", "http") => return Err(RedirectError::Downgrade(host_of(&url))),
        (_, "http") if plain_allowed(&url) => {}
        (_, "http") => return Err(RedirectError::Plain(host_of(&url))),
        _ => return Err(RedirectError::NoAddress),
    }
    let foreign = from.origin() != url.origin();
    Ok(Hop { url, foreign })
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(from: &str, location: &str) -> Result<Hop, RedirectError> {
        next_hop(&from.parse().unwrap(), location, |url| url.host_str() == Some("plain.local"))
    }

    #[test]
    fn the_same_registry_keeps_what_it_was_given() {
        let hop = hop("https://r.local/v2/a/blobs/x", "/v2/b/blobs/x?y=1").unwrap();
        assert_eq!((hop.url.as_str(), hop.foreign), ("https://r.local/v2/b/blobs/x?y=1", false));
    }

    #[test]
    fn another_host_or_port_or_scheme_is_foreign() {
        for location in ["https://s.local/x", "https://r.local:444/x", "//s.local/x"] {
            assert!(hop("https://r.local/v2/", location).unwrap().foreign, "{location}");
        }
        assert!(hop("http://plain.local/v2/", "https://plain.local/v2/").unwrap().foreign);
    }

    #[test]
    fn tls_is_never_left_and_plain_http_must_be_named() {
        let downgraded = hop("https://plain.local/", "http://plain.local:80/x");
        assert_eq!(downgraded, Err(RedirectError::Downgrade("plain.local".into())));
        assert!(hop("http://plain.local/", "http://plain.local:9000/x").is_ok());
        let unnamed = hop("http://plain.local/", "http://other.local:9000/x");
        assert_eq!(unnamed, Err(RedirectError::Plain("other.local:9000".into())));
    }

    #[test]
    fn nonsense_is_not_followed() {
        let long = format!("/{}", "x".repeat(MAX_LOCATION_LEN));
        for location in ["file:///etc/passwd", "https://", "https://u:p@s.local/", "http://[", long.as_str()]
        {
            assert_eq!(hop("https://r.local/", location), Err(RedirectError::NoAddress), "{location}");
        }
    }
}
