//! Ways in for somebody else's client. Thin: a door turns requests into calls and our errors into status codes.

pub mod admin;
pub mod peer;
pub mod snapshots;

/// An error and what caused it, on one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
