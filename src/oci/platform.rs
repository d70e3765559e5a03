//! Platforms: which of an index's images a machine runs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest text taken for a platform: three short words.
const PLATFORM_LEN_MAX: usize = 64;

/// Operating system and architecture, in Go's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no platform: it is os/architecture or os/architecture/variant, such as linux/arm64")]
pub struct PlatformError(String);

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// Whether an image for `offered` is one for this platform. No variant takes every variant, and every arm64 is
    /// v8 (image-spec, `image-index.md`).
    #[must_use]
    pub fn takes(&self, offered: &Self) -> bool {
        let first = |platform: &Self| match platform.variant.as_deref() {
            Some("v8") if platform.architecture == "arm64" => None,
            variant => variant.map(str::to_owned),
        };
        let wanted = first(self);
        self.os == offered.os
            && self.architecture == offered.architecture
            && (wanted.is_none() || wanted == first(offered))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refused = || PlatformError(text.chars().take(PLATFORM_LEN_MAX).collect());
        let is_word = |word: &&str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        let words: Vec<&str> = text.split('/').collect();
        if text.len() > PLATFORM_LEN_MAX || !words.iter().all(is_word) {
            return Err(refused());
        }
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(refused()),
        };
        Ok(Self { architecture: architecture.to_owned(), os: os.to_owned(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_are_written_as_docker_takes_them() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for text in
            ["", "linux", "linux/", "linux/arm/v7/x", "linux/a b", &format!("linux/{}", "a".repeat(90))]
        {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_variant_is_minded_only_where_it_is_named() {
        assert!(platform("linux/arm").takes(&platform("linux/arm/v7")));
        assert!(!platform("linux/arm/v6").takes(&platform("linux/arm/v7")));
        assert!(platform("linux/arm64/v8").takes(&platform("linux/arm64")));
        assert!(platform("linux/arm64").takes(&platform("linux/arm64/v8")));
        assert!(!platform("linux/amd64").takes(&platform("windows/amd64")));
        assert!(Platform::own().takes(&Platform::own()));
    }
}
