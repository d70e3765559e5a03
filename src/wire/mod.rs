//! Messages on the wire, generated from `proto/`.
//!
//! containerd's and CRI's packages keep their names; `mesh` is our own protocol, whose limits stand
//! beside the code that enforces them.

#![expect(
    clippy::pedantic,
    clippy::excessive_nesting,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// What Flotilla speaks to containerd.
pub mod containerd {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
        pub mod content {
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
        pub mod images {
            pub mod v1 {
                tonic::include_proto!("containerd.services.images.v1");
            }
        }
        pub mod leases {
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }
        pub mod events {
            pub mod v1 {
                tonic::include_proto!("containerd.services.events.v1");
            }
        }
        pub mod introspection {
            pub mod v1 {
                tonic::include_proto!("containerd.services.introspection.v1");
            }
        }
        pub mod namespaces {
            pub mod v1 {
                tonic::include_proto!("containerd.services.namespaces.v1");
            }
        }
        pub mod version {
            pub mod v1 {
                tonic::include_proto!("containerd.services.version.v1");
            }
        }
    }
}

/// The container runtime interface, as a client: for tests and the demo.
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Between members of the mesh, `flotilla.mesh.v1`.
pub mod mesh {
    tonic::include_proto!("flotilla.mesh.v1");

    /// The version of the mesh protocol that this build speaks.
    pub const VERSION: u32 = 2;
}
