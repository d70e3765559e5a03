//! containerd's version, as distributions write it.

use std::{fmt, str::FromStr};

use super::CallError;

/// A version of containerd: `1.6.20~ds1`, `2.1.4`, `v2.4.2`, `2.4.0-beta.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
    text: String,
}

/// Why containerd's version does not do.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("containerd calls its version {0:?}, which does not begin with MAJOR.MINOR.PATCH")]
    Unreadable(String),
    #[error("containerd is {0}; Flotilla works with 1.6 and newer: please update containerd")]
    TooOld(Version),
}

impl Version {
    /// # Errors
    /// Older than 1.6, the oldest line whose calls Flotilla knows.
    pub fn check(&self) -> Result<(), VersionError> {
        if (self.major, self.minor) < (1, 6) {
            return Err(VersionError::TooOld(self.clone()));
        }
        Ok(())
    }

    /// 1.6 and 1.7 retry a locked ref inside their write transaction (`content/local/store.go`), so that a held
    /// ref slows every other write of containerd's database.
    #[must_use]
    pub fn slowed_by_holds(&self) -> bool {
        self.major < 2
    }

    /// From 2.1 on CRI hands `config_path` to the transfer service unsplit, so that a list of folders is taken for one,
    /// unless it pulls by itself.
    #[must_use]
    pub fn takes_one_hosts_dir(&self) -> bool {
        (self.major, self.minor) >= (2, 1)
    }

    /// 2.x tells of every blob that it commits; older ones only of images.
    #[must_use]
    pub fn tells_of_content(&self) -> bool {
        self.major >= 2
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let unreadable = || VersionError::Unreadable(text.chars().take(100).collect());
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let mut number = || {
            let part = parts.next().ok_or_else(unreadable)?;
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let whole = digits == part.len();
            part[..digits].parse().map(|number| (number, whole)).map_err(|_| unreadable())
        };
        let (major, major_whole) = number()?;
        let (minor, minor_whole) = number()?;
        let (patch, _) = number()?;
        if !major_whole || !minor_whole {
            return Err(unreadable());
        }
        Ok(Self { major, minor, patch, text: text.chars().take(100).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_read() {
        for (text, numbers) in [
            ("1.6.20~ds1", (1, 6, 20)),
            ("1.7.24~ds1", (1, 7, 24)),
            ("2.1.4", (2, 1, 4)),
            ("v2.4.2", (2, 4, 2)),
            ("2.4.0-beta.1", (2, 4, 0)),
            ("1.7.2-0ubuntu1~22.04.1", (1, 7, 2)),
            ("v1.6.8+unknown", (1, 6, 8)),
        ] {
            let version: Version = text.parse().unwrap();
            assert_eq!((version.major, version.minor, version.patch), numbers, "{text}");
            assert!(version.check().is_ok());
            assert_eq!(version.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_version_is_quoted() {
        for text in ["", "unknown", "2", "2.1", "v.1.2", "2.x.1", "1~.6.0", "99999999999.0.0", "2.1."] {
            let error = text.parse::<Version>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn versions_before_1_6_are_refused_in_words() {
        for text in ["1.5.18", "v1.4.13", "0.2.9"] {
            let error = text.parse::<Version>().unwrap().check().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert!(error.to_string().contains("1.6 and newer"), "{error}");
        }
    }

    #[test]
    fn the_lines_differ_in_what_holds_cost_and_events_tell() {
        let parsed = |text: &str| text.parse::<Version>().unwrap();
        assert!(parsed("1.7.24~ds1").slowed_by_holds());
        assert!(!parsed("2.0.0").slowed_by_holds());
        assert!(parsed("v2.4.2").tells_of_content());
        assert!(!parsed("1.6.20").tells_of_content());
    }
}
