//! Leave to read, from whoever knows more than one node does.

use std::time::Duration;

use futures_util::future::BoxFuture;

/// Says when a registry may be read from. Mirrors that `hosts.toml` names beside it are nobody's but the node's.
pub trait Leave: Send + Sync {
    /// Waits for leave to read from the registry `host`, named with its port; it ends when what comes is dropped. It is
    /// asked for anew where a connection broke or was refused, and not held in between.
    fn wait<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Box<dyn Send + Sync>>;

    /// The registry told us to come later; `held` is what was given for this connection.
    fn throttled(&self, host: &str, retry_after: Option<Duration>, held: Box<dyn Send + Sync>);
}
