//! In whose name a registry is asked: the node's, or a client's whose request is passed on.

use std::fmt;

use http::HeaderValue;

use super::endpoint::Endpoint;

/// A client's own `Authorization`, for the registry that it asks. Never printed, and kept no longer than the request
/// or the pull that it came with.
#[derive(Clone, PartialEq, Eq)]
pub struct Pass(HeaderValue);

impl Pass {
    #[must_use]
    pub fn new(mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        Self(value)
    }

    /// The header's value, to tell one client's from another's.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass(…)")
    }
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asker {
    /// This node, with the credentials that it has.
    #[default]
    Node,
    /// A client of this node: with its own pass to the registry itself, as a stranger everywhere else. None of the
    /// node's credentials are shown for it.
    Client(Option<Pass>),
}

impl Asker {
    pub(super) fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// What is shown to `endpoint` as it is.
    pub(super) fn pass_for(&self, endpoint: &Endpoint) -> Option<&HeaderValue> {
        match self {
            Self::Client(Some(Pass(value))) if endpoint.is_registry => Some(value),
            Self::Client(_) | Self::Node => None,
        }
    }

    /// Of two who want the same thing, the one who can get it: a node with credentials of its own, then the latest
    /// pass.
    #[must_use]
    pub fn or(self, later: Self) -> Self {
        match (&self, &later) {
            (Self::Node, _) | (Self::Client(Some(_)), Self::Client(None)) => self,
            _ => later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_never_printed() {
        let pass = Pass::new(HeaderValue::from_static("Bearer secret"));
        assert!(!format!("{:?}", Asker::Client(Some(pass))).contains("secret"));
    }

    #[test]
    fn of_two_askers_the_one_with_credentials_counts() {
        let pass = |text| Asker::Client(Some(Pass::new(HeaderValue::from_static(text))));
        let stranger = || Asker::Client(None);
        assert_eq!(stranger().or(pass("a")), pass("a"));
        assert_eq!(pass("a").or(stranger()), pass("a"));
        assert_eq!(pass("a").or(pass("b")), pass("b"));
        assert_eq!(pass("a").or(Asker::Node), Asker::Node);
        assert_eq!(Asker::Node.or(pass("a")), Asker::Node);
    }
}
