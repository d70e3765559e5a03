//! Names and documents of the Open Container Initiative: parsed once at the edge, trusted afterwards.
//!
//! Sources: OCI image-spec 1.1 (`descriptor.md`, `manifest.md`, `config.md`) and distribution-spec 1.1.

mod digest;
mod document;
mod media_type;
mod platform;
mod reference;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use document::{
    Descriptor, DocumentError, ImageConfig, Index, MAX_DOCUMENT_LEN, Manifest, REF_NAME_ANNOTATION, chain_ids,
};
pub use media_type::{
    Compression, MEDIA_TYPE_LEN_MAX, Unhandled, is_image_config, is_index, is_manifest, layer_compression,
};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, Repository, host_name};
