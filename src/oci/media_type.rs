//! Media types: which documents these are, and how a layer is compressed.

/// Longest media type that is remembered (RFC 6838, 4.2: two names of 127 and a slash).
pub const MEDIA_TYPE_LEN_MAX: usize = 255;

/// How the tar of a layer is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Why a layer is left to containerd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unhandled {
    #[error("foreign layer, to be fetched from its own addresses: {0}")]
    Foreign(String),
    #[error("encrypted layer: {0}")]
    Encrypted(String),
    #[error("unknown media type: {0}")]
    Unknown(String),
}

impl Unhandled {
    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Foreign(_) => "foreign",
            Self::Encrypted(_) => "encrypted",
            Self::Unknown(_) => "media_type",
        }
    }
}

/// The compression that a layer's media type states.
///
/// # Errors
/// Foreign, encrypted and unknown layers, which containerd handles by itself.
pub fn layer_compression(media_type: &str) -> Result<Compression, Unhandled> {
    let quoted = || media_type.chars().take(140).collect::<String>();
    if media_type.contains("+encrypted") {
        return Err(Unhandled::Encrypted(quoted()));
    }
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other if other.contains("nondistributable") || other.contains(".foreign.") => {
            Err(Unhandled::Foreign(quoted()))
        }
        _ => Err(Unhandled::Unknown(quoted())),
    }
}

/// An OCI image manifest or Docker's schema 2.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// An OCI index or Docker's manifest list.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// The config of an image that runs, and not of some artifact.
#[must_use]
pub fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_containerd_must_handle_are_named() {
        let foreign = layer_compression("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        assert_eq!(foreign.unwrap_err().reason(), "foreign");
        let encrypted = layer_compression("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert_eq!(encrypted.unwrap_err().reason(), "encrypted");
        assert_eq!(layer_compression("application/wasm").unwrap_err().reason(), "media_type");
    }

    #[test]
    fn both_families_of_layers_are_known() {
        for (media_type, compression) in [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
        ] {
            assert_eq!(layer_compression(media_type), Ok(compression));
        }
    }
}
