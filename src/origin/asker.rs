//! In whose name a registry is asked: the node's, or a client's whose request is passed on.

use std::{fmt, sync::Arc};

use http::HeaderValue;

use super::{
    auth::{Credential, Sessions, Whose},
    endpoint::Endpoint,
};
use crate::oci::Repository;

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

/// Credentials that came along with one pull, and what the registry has given for them: a token, say. Gone with the last
/// who asks in their name.
pub struct Lent {
    pub(super) credential: Credential,
    pub(super) sessions: Sessions,
}

impl Lent {
    #[must_use]
    pub fn new(credential: Credential) -> Self {
        Self { credential, sessions: Sessions::default() }
    }

    /// To be shown to the registry of that pull.
    #[must_use]
    pub fn credential(&self) -> &Credential {
        &self.credential
    }
}

impl PartialEq for Lent {
    fn eq(&self, other: &Self) -> bool {
        self.credential == other.credential
    }
}

impl Eq for Lent {}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lent(…)")
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
    /// This node for somebody who has lent it his credentials for one pull: kubelet, with a pod's pull secrets. They are
    /// shown to the registry itself and the realm that it names.
    Lent(Arc<Lent>),
}

impl Asker {
    pub(super) fn whose(&self) -> Whose<'_> {
        match self {
            Self::Node => Whose::Node,
            Self::Client(_) => Whose::Stranger,
            Self::Lent(lent) => Whose::Lent(lent),
        }
    }

    pub(super) fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// What is shown to `endpoint` as it is.
    pub(super) fn pass_for(&self, endpoint: &Endpoint) -> Option<&HeaderValue> {
        match self {
            Self::Client(Some(Pass(value))) if endpoint.is_registry => Some(value),
            Self::Client(_) | Self::Node | Self::Lent(_) => None,
        }
    }
}

/// A repository that may have what is looked for, and in whose name it is asked. What a client brings for one
/// repository is shown to no other: the two are never parted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    pub repository: Repository,
    pub asker: Asker,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_never_printed() {
        let pass = Pass::new(HeaderValue::from_static("Bearer secret"));
        assert!(!format!("{:?}", Asker::Client(Some(pass))).contains("secret"));
    }
}
