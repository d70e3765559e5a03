//! Tests of whole parts on real sockets, mounts and daemons.

mod snapshots;
