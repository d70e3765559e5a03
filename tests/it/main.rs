//! Integration tests: whole modules against real sockets.

#[cfg(test)]
mod origin;
#[cfg(test)]
mod registry;
