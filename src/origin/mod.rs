//! Upstream registries: authorisation, ranged reads, retries, certificates.
