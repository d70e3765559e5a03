//! What Flotilla asks of containerd: content, images, leases, events, introspection.
