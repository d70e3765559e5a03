//! Makes a blob present: local, in flight, peers, origin.
