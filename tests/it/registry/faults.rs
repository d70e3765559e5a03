//! What a registry can do wrong, or merely differently.

use std::{collections::HashSet, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::body::Pace;

/// Faults that end by themselves after some `times`; the others last until `heal`.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Everything needs a token from this registry's `/token`, which asks for these credentials (none: anyone
    /// gets one). Tokens live for `life`.
    TokenAuth {
        user: Option<(String, String)>,
        identity_token: Option<String>,
        life: Duration,
    },
    BasicAuth {
        user: String,
        password: String,
    },
    /// Answers 200 and the whole blob to every range.
    IgnoreRange,
    /// Answers 416 to every range.
    RefuseRange,
    /// Answers 405 to HEAD of a blob.
    RefuseHead,
    /// Blobs are redirected to the same path below this address.
    RedirectBlobs {
        to: String,
    },
    /// Blobs are redirected to themselves, for ever.
    RedirectLoop,
    /// All bodies together.
    Throttle {
        bytes_per_second: u64,
    },
    /// 429, with `Retry-After` in seconds.
    TooManyRequests {
        times: u32,
        retry_after: u64,
    },
    ServerError {
        times: u32,
    },
    /// The connection ends after so many bytes of a blob's body.
    Truncate {
        after: u64,
        times: u32,
    },
    /// Nothing more comes after so many bytes of a blob's body, but the connection stays open.
    Stall {
        after: u64,
        times: u32,
    },
    /// The first byte of every body is another.
    WrongBytes,
    /// The blob is so many bytes longer than it should be.
    Longer {
        by: u64,
    },
    /// Answers 200 and a web page.
    Html,
    /// Bodies have no stated length and no end.
    Endless,
}

/// The faults that are switched on.
#[derive(Default)]
pub(super) struct Faults {
    on: Vec<Fault>,
    pace: Option<Arc<Pace>>,
    tokens: HashSet<String>,
    handed_out: u32,
}

/// What the connection does in the middle of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Truncate(u64),
    Stall(u64),
}

/// An answer that takes the place of the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooManyRequests { retry_after: u64 },
    ServerError,
}

impl Faults {
    pub(super) fn switch_on(&mut self, fault: Fault) {
        if let Fault::Throttle { bytes_per_second } = fault {
            self.pace = Some(Pace::new(bytes_per_second));
        }
        self.on.push(fault);
    }

    pub(super) fn revoke_tokens(&mut self) {
        self.tokens.clear();
    }

    /// The rate that all bodies share, if they are throttled.
    pub(super) fn pace(&self) -> Option<Arc<Pace>> {
        self.pace.clone()
    }

    pub(super) fn any(&self, is: impl Fn(&Fault) -> bool) -> bool {
        self.on.iter().any(is)
    }

    pub(super) fn find<T>(&self, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.on.iter().find_map(pick)
    }

    /// The refusal due now, counted down.
    pub(super) fn refusal(&mut self) -> Option<Refusal> {
        self.on.iter_mut().find_map(|fault| match fault {
            Fault::TooManyRequests { times, retry_after } if *times > 0 => {
                *times -= 1;
                Some(Refusal::TooManyRequests { retry_after: *retry_after })
            }
            Fault::ServerError { times } if *times > 0 => {
                *times -= 1;
                Some(Refusal::ServerError)
            }
            _ => None,
        })
    }

    /// The cut due in the next body of `len` bytes, counted down.
    pub(super) fn cut(&mut self, len: u64) -> Option<Cut> {
        self.on.iter_mut().find_map(|fault| match fault {
            Fault::Truncate { after, times } if *times > 0 && *after < len => {
                *times -= 1;
                Some(Cut::Truncate(*after))
            }
            Fault::Stall { after, times } if *times > 0 && *after < len => {
                *times -= 1;
                Some(Cut::Stall(*after))
            }
            _ => None,
        })
    }

    /// `None` if this `Authorization` lets in; else the challenge. `base` is this registry's address.
    pub(super) fn challenge(
        &self,
        authorization: Option<&str>,
        base: &str,
        repository: &str,
    ) -> Option<String> {
        let carried = authorization.unwrap_or_default();
        self.find(|fault| match fault {
            Fault::BasicAuth { user, password } if carried != basic(user, password) => {
                Some("Basic realm=\"test\"".to_owned())
            }
            Fault::TokenAuth { .. } => {
                let known = carried.strip_prefix("Bearer ").is_some_and(|token| self.tokens.contains(token));
                let challenge = format!(
                    "Bearer realm=\"{base}/token\",service=\"test\",scope=\"repository:{repository}:pull\""
                );
                (!known).then_some(challenge)
            }
            _ => None,
        })
    }

    /// A token for whoever has the right credentials: a basic header or an identity token.
    pub(super) fn token(&mut self, authorization: Option<&str>, form: &str) -> Option<(String, Duration)> {
        let life = self.find(|fault| match fault {
            Fault::TokenAuth { user, identity_token, life } => {
                let by_user = user
                    .as_ref()
                    .is_none_or(|(user, password)| authorization == Some(basic(user, password).as_str()));
                let allowed = match identity_token {
                    Some(token) => form.contains(&format!("refresh_token={token}")),
                    None => by_user,
                };
                allowed.then_some(*life)
            }
            _ => None,
        })?;
        self.handed_out += 1;
        let token = format!("token-{}", self.handed_out);
        self.tokens.insert(token.clone());
        Some((token, life))
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}
