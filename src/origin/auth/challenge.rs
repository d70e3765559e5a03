//! What a registry demands in `WWW-Authenticate` (RFC 9110, 11.6.1; distribution-spec's token scheme).

use http::{HeaderMap, header::WWW_AUTHENTICATE};
use http_auth::parser::ChallengeParser;

/// The demands that we can meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::origin) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Longest header looked at; registries send 200 bytes.
const MAX_CHALLENGE_LEN: usize = 4 << 10;

/// The demand to meet: a token where one is offered, for its credentials do less harm when lost.
pub(in crate::origin) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Some(text) = header.to_str().ok().filter(|text| text.len() <= MAX_CHALLENGE_LEN) else {
            continue;
        };
        for challenge in ChallengeParser::new(text).map_while(Result::ok) {
            let param = |wanted: &str| {
                let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: param("service"),
                        scope: param("scope"),
                    });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(headers: &[&str]) -> Option<Challenge> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().unwrap());
        }
        challenge(&map)
    }

    #[test]
    fn a_token_is_preferred_wherever_it_stands() {
        let bearer = r#"Bearer realm="https://a/token",service="s",scope="repository:x/y:pull,push""#;
        let wanted = Challenge::Bearer {
            realm: "https://a/token".into(),
            service: Some("s".into()),
            scope: Some("repository:x/y:pull,push".into()),
        };
        assert_eq!(parsed(&[bearer]), Some(wanted.clone()));
        assert_eq!(parsed(&[r#"Basic realm="x""#, bearer]), Some(wanted.clone()));
        assert_eq!(parsed(&[&format!(r#"basic realm="x", {bearer}"#)]), Some(wanted));
    }

    #[test]
    fn what_cannot_be_met_is_no_demand() {
        assert_eq!(parsed(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(parsed(&["Negotiate"]), None);
        assert_eq!(parsed(&["Bearer service=\"no realm\""]), None);
        assert_eq!(parsed(&["\"\"\",,,="]), None);
        assert_eq!(parsed(&[&format!("Basic realm=\"{}\"", "x".repeat(5000))]), None);
        assert_eq!(parsed(&[]), None);
    }
}
