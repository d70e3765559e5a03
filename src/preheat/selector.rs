//! Which nodes are meant: names, globs, zones, roles. Pure.
//!
//! ```text
//! n1,web-*            these names; * stands for any text, ? for one character
//! zone=a,role=seed    members of the zone, and seeds: what stands between commas are alternatives
//! zone=a+role=seed    seeds of the zone: what is joined by + must hold together
//! ```

use std::{fmt, str::FromStr};

use crate::mesh::{Member, Role, RoleError, is_name, is_zone};

/// Longest selector taken: some sixty names as long as names are in practice.
const SELECTOR_LEN_MAX: usize = 4096;

/// Chooses members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Alternative>);

/// Terms that must hold together, and how they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alternative {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Name(String),
    Zone(String),
    Role(Role),
}

/// Why a text selects nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    #[error("the selector of nodes is longer than {SELECTOR_LEN_MAX} bytes")]
    TooLong,
    #[error(
        "`{0}` in the selector of nodes is no name, glob, zone=… or role=…, alone or several joined by `+`"
    )]
    Term(String),
    #[error("in the selector of nodes")]
    Role(#[source] RoleError),
}

impl Selector {
    /// Whether `member` is meant.
    #[must_use]
    pub fn takes(&self, member: &Member) -> bool {
        self.0.iter().any(|alternative| alternative.takes(member))
    }

    /// The alternatives that mean none of `members`.
    pub fn idle<'a>(&'a self, members: &'a [Member]) -> impl Iterator<Item = &'a str> {
        let idle = |alternative: &&Alternative| !members.iter().any(|member| alternative.takes(member));
        self.0.iter().filter(idle).map(|alternative| alternative.text.as_str())
    }
}

impl Default for Selector {
    /// All.
    fn default() -> Self {
        let any = "*".to_owned();
        Self(vec![Alternative { text: any.clone(), terms: vec![Term::Name(any)] }])
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_LEN_MAX {
            return Err(SelectorError::TooLong);
        }
        let alternative = |text: &str| {
            let terms = text.split('+').map(|term| term.trim().parse()).collect::<Result<_, _>>()?;
            Ok(Alternative { text: text.trim().to_owned(), terms })
        };
        text.split(',').map(alternative).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<&str> = self.0.iter().map(|alternative| alternative.text.as_str()).collect();
        f.write_str(&texts.join(","))
    }
}

impl Alternative {
    fn takes(&self, member: &Member) -> bool {
        self.terms.iter().all(|term| match term {
            Term::Name(glob) => is_like(&member.name, glob),
            Term::Zone(glob) => member.zone.as_deref().is_some_and(|zone| is_like(zone, glob)),
            Term::Role(role) => member.role == *role,
        })
    }
}

impl FromStr for Term {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        // A glob is a name or a zone with wildcards where other characters could be.
        let plain = |glob: &str| glob.replace(['*', '?'], "x");
        let refused = || SelectorError::Term(text.to_owned());
        match text.split_once('=') {
            Some(("zone", zone)) if is_zone(&plain(zone)) => Ok(Self::Zone(zone.to_owned())),
            Some(("role", role)) => role.parse().map(Self::Role).map_err(SelectorError::Role),
            Some(_) => Err(refused()),
            None if is_name(&plain(text)) || is_address(text) => Ok(Self::Name(text.to_owned())),
            None => Err(refused()),
        }
    }
}

/// A seed that has never answered stands under its address.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Whether `text` is like `glob`: from the left, and back to the last `*` when it goes wrong.
fn is_like(text: &str, glob: &str) -> bool {
    let (text, glob) = (text.as_bytes(), glob.as_bytes());
    let (mut at, mut of) = (0, 0);
    let mut star = None;
    while at < text.len() {
        match glob.get(of) {
            Some(b'*') => {
                star = Some((at, of));
                of += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[at] => {
                at += 1;
                of += 1;
            }
            Some(_) | None => {
                let Some((begun, place)) = star else { return false };
                star = Some((begun + 1, place));
                (at, of) = (begun + 1, place + 1);
            }
        }
    }
    glob[of..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, zone: Option<&str>, role: Role) -> Member {
        let address = "10.0.0.1:7442".to_owned();
        Member { name: name.to_owned(), address, zone: zone.map(str::to_owned), generation: 1, role }
    }

    fn chosen(selector: &str) -> Vec<String> {
        let members = [
            member("web-1", Some("a"), Role::Peer),
            member("web-2", Some("b"), Role::Peer),
            member("store", Some("a"), Role::Seed),
            member("lone", None, Role::Leech),
        ];
        let selector: Selector = selector.parse().unwrap();
        members.into_iter().filter(|member| selector.takes(member)).map(|member| member.name).collect()
    }

    #[test]
    fn names_globs_zones_and_roles_choose() {
        assert_eq!(chosen("*"), ["web-1", "web-2", "store", "lone"]);
        assert_eq!(chosen("web-*"), ["web-1", "web-2"]);
        assert_eq!(chosen("web-?,lone"), ["web-1", "web-2", "lone"]);
        assert_eq!(chosen("zone=a"), ["web-1", "store"]);
        assert_eq!(chosen("zone=?"), ["web-1", "web-2", "store"]);
        assert_eq!(chosen("role=seed, zone=b"), ["web-2", "store"]);
        assert_eq!(chosen("zone=a+role=peer"), ["web-1"]);
        assert_eq!(chosen("*e*o?e"), Vec::<String>::new());
        assert_eq!(chosen("*t*r*"), ["store"]);
    }

    #[test]
    fn what_means_nobody_is_named() {
        let members = [member("n1", None, Role::Peer)];
        let selector: Selector = "n1,n2,zone=a+role=seed".parse().unwrap();
        assert_eq!(selector.idle(&members).collect::<Vec<_>>(), ["n2", "zone=a+role=seed"]);
        assert_eq!(selector.to_string(), "n1,n2,zone=a+role=seed");
        assert!(Selector::default().takes(&members[0]));
    }

    #[test]
    fn nonsense_is_refused_by_its_term() {
        for text in ["", "n1,", "zone=", "zone=a b", "rack=3", "a b", "N1", "n1++n2"] {
            assert!(matches!(text.parse::<Selector>(), Err(SelectorError::Term(_))), "{text}");
        }
        assert!(matches!("role=king".parse::<Selector>(), Err(SelectorError::Role(_))));
        assert_eq!("n1,".repeat(2000).parse::<Selector>(), Err(SelectorError::TooLong));
    }
}
