//! The settings file: strict, every key optional.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use toml_edit::{Array, Document, Item, Value};

use super::{
    rates::{ENTRIES_MAX, Entry},
    schema::{Form, KEYS, Key, RATE_MIN, nearest},
};
use crate::mesh::{Seed, is_name, is_zone};

/// The file that is read where none is named.
pub const DEFAULT_FILE: &str = "/etc/flotilla/config.toml";

/// Longest settings file read: a hundred times what all keys need.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read settings file {path}{}", as_whom(source))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("settings file {path} is longer than {MAX_FILE_LEN} bytes")]
    TooLong { path: PathBuf },
    #[error("settings file {path} is not TOML: {message}")]
    Toml { path: PathBuf, message: String },
    #[error("{path}:{line}: unknown {what} `{typed}`{}", hint(*.nearest))]
    Unknown { path: PathBuf, line: usize, what: &'static str, typed: String, nearest: Option<&'static str> },
    #[error("{path}:{line}: {key} must be {wants}, not {got}")]
    Form { path: PathBuf, line: usize, key: String, wants: String, got: String },
    #[error("cannot tell the host's name; set node.name")]
    NoName,
    #[error("cannot tell how large the file system of {path} is, for {key}")]
    FileSystem { path: PathBuf, key: &'static str, source: rustix::io::Errno },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// What only root may read, only root can be told to.
fn as_whom(error: &std::io::Error) -> &'static str {
    if error.kind() == std::io::ErrorKind::PermissionDenied { "; run this as root" } else { "" }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Default,
    /// The line of the settings file.
    File(usize),
}

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Settings {
    path: PathBuf,
    /// Keyed by `section.name`; keys without a default and without a line in the file are absent.
    values: BTreeMap<String, (Value, Source)>,
}

impl Settings {
    /// Reads `path`, or the default file if it is there, or takes the defaults.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value of the wrong form.
    pub fn load(path: Option<&Path>) -> Result<Self, SettingsError> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        let read = |source| SettingsError::Read { path: path.to_owned(), source };
        let text = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_FILE_LEN => {
                return Err(SettingsError::TooLong { path: path.to_owned() });
            }
            Ok(_) => std::fs::read_to_string(path).map_err(read)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
            Err(error) => return Err(read(error)),
        };
        Self::parse(path, &text)
    }

    /// Takes `text` as the contents of `path`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let document = Document::parse(text.to_owned()).map_err(|error| SettingsError::Toml {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let mut values = BTreeMap::new();
        for key in KEYS {
            if let Some(default) = key.default {
                let value = default.parse().expect("defaults are TOML values, as a test shows");
                values.insert(full_name(key), (value, Source::Default));
            }
        }
        let reader = Reader { path, text };
        for (section, item) in document.iter() {
            reader.section(section, item, &mut values)?;
        }
        Ok(Self { path: path.to_owned(), values })
    }

    fn value(&self, name: &str) -> Option<&Value> {
        debug_assert!(KEYS.iter().any(|key| full_name(key) == name), "{name} is in the schema");
        self.values.get(name).map(|(value, _)| value)
    }

    /// The text at `section.name`, if there is one.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.value(name).and_then(Value::as_str).map(str::to_owned)
    }

    /// The path at `section.name`, if there is one.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// Whether nobody has said anything of `section.name`.
    #[must_use]
    pub fn is_default(&self, name: &str) -> bool {
        self.values.get(name).is_none_or(|(_, source)| matches!(source, Source::Default))
    }

    /// The list at `section.name`, one text standing for a list of one; empty if there is none.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<String> {
        if let Some(text) = self.text(name) {
            return vec![text];
        }
        let array = self.value(name).and_then(Value::as_array);
        array.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    #[must_use]
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.text(name).and_then(|text| humantime::parse_duration(&text).ok())
    }

    /// Bytes at `section.name`.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.value(name).and_then(size_of)
    }

    /// Bytes at `section.name`, a share counted of the file system that holds `of` or its nearest parent.
    ///
    /// # Errors
    /// The file system cannot be measured.
    pub fn share(&self, name: &'static str, of: &Path) -> Result<Option<u64>, SettingsError> {
        let Some(percent) = self.value(name).and_then(Value::as_str).and_then(percent_of) else {
            return Ok(self.size(name));
        };
        let existing = of.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let fs = rustix::fs::statvfs(existing).map_err(|source| SettingsError::FileSystem {
            path: existing.to_owned(),
            key: name,
            source,
        })?;
        Ok(Some(fs.f_blocks * fs.f_frsize / 100 * percent))
    }

    #[must_use]
    pub fn listen(&self, name: &str) -> Option<SocketAddr> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    #[must_use]
    pub fn count(&self, name: &str) -> Option<usize> {
        self.value(name).and_then(Value::as_integer).and_then(|count| usize::try_from(count).ok())
    }

    #[must_use]
    pub fn switch(&self, name: &str) -> bool {
        self.value(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Every key with its value and where that came from, as a settings file.
    #[must_use]
    pub fn print(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                section = key.section;
                let gap = if out.is_empty() { "" } else { "\n" };
                let _ = writeln!(out, "{gap}[{section}]");
            }
            let _ = match self.values.get(&full_name(key)) {
                Some((value, source)) => {
                    let value = value.to_string();
                    let origin = match source {
                        Source::Default => "default".to_owned(),
                        Source::File(line) => format!("{}:{line}", self.path.display()),
                    };
                    writeln!(out, "{} = {}  # {origin}: {}", key.name, value.trim(), key.about)
                }
                None => writeln!(out, "# {} is not set: {}", key.name, key.about),
            };
        }
        out
    }
}

fn full_name(key: &Key) -> String {
    format!("{}.{}", key.section, key.name)
}

/// Reads one file against the schema.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, item: &Item) -> usize {
        self.line_at(item.span())
    }

    fn line_at(&self, span: Option<Range<usize>>) -> usize {
        let start = span.map_or(0, |span| span.start);
        self.text[..start.min(self.text.len())].bytes().filter(|byte| *byte == b'\n').count() + 1
    }

    fn section(
        &self,
        section: &str,
        item: &Item,
        values: &mut BTreeMap<String, (Value, Source)>,
    ) -> Result<(), SettingsError> {
        let sections = || KEYS.iter().map(|key| key.section);
        let Some(table) = item.as_table_like().filter(|_| sections().any(|known| known == section)) else {
            return Err(SettingsError::Unknown {
                path: self.path.to_owned(),
                line: self.line(item),
                what: "section",
                typed: section.to_owned(),
                nearest: nearest(section, sections()),
            });
        };
        for (name, item) in table.iter() {
            let Some(key) = KEYS.iter().find(|key| key.section == section && key.name == name) else {
                let in_section = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
                return Err(SettingsError::Unknown {
                    path: self.path.to_owned(),
                    line: self.line(item),
                    what: "key",
                    typed: format!("{section}.{name}"),
                    nearest: nearest(name, in_section),
                });
            };
            let value =
                item.as_value().filter(|value| fits(key.form, value)).ok_or_else(|| SettingsError::Form {
                    path: self.path.to_owned(),
                    line: self.line(item),
                    key: full_name(key),
                    wants: key.form.wants(),
                    got: item.to_string().trim().chars().take(80).collect(),
                })?;
            if let (Form::Schedule, Some(array)) = (key.form, value.as_array()) {
                self.schedule(key, array)?;
            }
            values.insert(full_name(key), (value.clone(), Source::File(self.line(item))));
        }
        Ok(())
    }
}

/// Schedules are checked entry by entry, for more than one thing can be wrong with each.
impl Reader<'_> {
    fn schedule(&self, key: &Key, array: &Array) -> Result<(), SettingsError> {
        let wrong = |value: &Value, got: String| SettingsError::Form {
            path: self.path.to_owned(),
            line: self.line_at(value.span()),
            key: full_name(key),
            wants: key.form.wants(),
            got,
        };
        for (number, value) in array.iter().enumerate() {
            let text = value.as_str().unwrap_or_default();
            if let Err(why) = text.parse::<Entry>() {
                return Err(wrong(value, format!("`{text}`: {why}")));
            }
            if number >= ENTRIES_MAX {
                return Err(wrong(value, format!("more than {ENTRIES_MAX} of them")));
            }
        }
        Ok(())
    }
}

fn fits(form: Form, value: &Value) -> bool {
    let text = value.as_str();
    let list_of = |good: fn(&str) -> bool| match value.as_array() {
        Some(array) => array.iter().all(|item| item.as_str().is_some_and(good)),
        None => text.is_some_and(good),
    };
    match form {
        Form::Text => text.is_some_and(|text| !text.is_empty()),
        Form::Word(words) => text.is_some_and(|text| words.contains(&text)),
        Form::Path => text.is_some_and(|text| Path::new(text).is_absolute()),
        Form::Paths => list_of(|text| Path::new(text).is_absolute()),
        Form::Schedule => value.as_array().is_some_and(|array| array.iter().all(Value::is_str)),
        Form::Texts => list_of(|text| !text.is_empty()),
        Form::Hosts => list_of(is_host),
        Form::Members => list_of(|text| text.parse::<Seed>().is_ok()),
        Form::Duration => text.is_some_and(|text| humantime::parse_duration(text).is_ok()),
        Form::Rate => text == Some("unlimited") || size_of(value).is_some_and(|rate| rate >= RATE_MIN),
        Form::Name => text.is_some_and(is_name),
        Form::Zone => text.is_some_and(is_zone),
        Form::Share => size_of(value).is_some() || text.and_then(percent_of).is_some(),
        Form::Listen => text.is_some_and(|text| text.parse::<SocketAddr>().is_ok()),
        Form::Count => value.as_integer().is_some_and(|count| count > 0),
        Form::Switch => value.as_bool().is_some(),
    }
}

/// Letters, digits and what stands between them in a host's name, an address and a pattern of either.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]*".contains(&byte))
}

/// A whole share from 0 to 100.
fn percent_of(text: &str) -> Option<u64> {
    text.strip_suffix('%')?.trim().parse().ok().filter(|percent| *percent <= 100)
}

fn size_of(value: &Value) -> Option<u64> {
    if let Some(bytes) = value.as_integer() {
        return u64::try_from(bytes).ok();
    }
    size_of_text(value.as_str()?)
}

/// Bytes, as `10GiB` or as a number.
pub(super) fn size_of_text(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "TB" => 1000 * 1000 * 1000 * 1000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse(Path::new("/etc/flotilla/config.toml"), text)
    }

    #[test]
    fn defaults_fit_their_own_forms() {
        for key in KEYS {
            if let Some(default) = key.default {
                let value: Value = default.parse().unwrap();
                assert!(fits(key.form, &value), "{}.{}", key.section, key.name);
            }
        }
        let settings = parse("").unwrap();
        assert_eq!(settings.duration("store.expire_after"), Some(Duration::from_hours(168)));
        assert_eq!(settings.path("node.data_dir"), Some(PathBuf::from("/var/lib/flotilla")));
        assert_eq!(settings.text("node.zone"), None);
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_line_and_its_neighbour() {
        let error = parse("[store]\nquota = \"5GiB\"\nexpire_afer = \"1h\"\n").unwrap_err().to_string();
        assert_eq!(
            error,
            "/etc/flotilla/config.toml:3: unknown key `store.expire_afer`; did you mean `expire_after`?"
        );
        let error = parse("[stor]\n").unwrap_err().to_string();
        assert!(error.contains("unknown section `stor`; did you mean `store`?"), "{error}");
    }

    #[test]
    fn an_impossible_value_is_answered_with_what_it_should_be() {
        for (text, wants) in [
            ("[node]\nrole = \"king\"", "one of \"peer\", \"seed\", \"leech\", not \"king\""),
            ("[node]\ndata_dir = \"here\"", "an absolute path, not \"here\""),
            (
                "[store]\nquota = \"5 apples\"",
                "a size such as \"10GiB\" or a share such as \"10%\", not \"5 apples\"",
            ),
            ("[admin]\nlisten = 80", "an address and port such as \"127.0.0.1:7440\", not 80"),
            ("[mesh]\nupload_rate = 100", "not below \"16KiB\", or \"unlimited\", not 100"),
            ("[mesh]\nupload_rate = 0", "or \"unlimited\", not 0"),
            (
                "[registry]\nplain_http = \"http://r.local\"",
                "such as \"registry.example:5000\" or a list of them",
            ),
            ("[node]\nname = \"Node 1\"", "a DNS name in lower case such as \"node1\", not \"Node 1\""),
            ("[node]\nzone = \"rack 2\"", "letters, digits, `-`, `_` and `.`, not \"rack 2\""),
            ("[registry]\norigin_concurrency = 0", "a whole number from 1 on, not 0"),
            ("[mesh]\nmembers = [\"10.0.0.2\"]", "or a list of them, not [\"10.0.0.2\"]"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wants) && error.contains(":2:"), "{error}");
        }
        let error = parse("[rates]\nschedule = [\n  \"daily 22:00-06:00 origin=1GiB\",\n  \"mon-fry 08:00-18:00 upload=1MiB\",\n]")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "/etc/flotilla/config.toml:4: rates.schedule must be a list of entries such as \"mon-fri 08:00-18:00 \
             upload=50MiB origin=unlimited\", not `mon-fry 08:00-18:00 upload=1MiB`: `fry` is not one of daily, mon, \
             tue, wed, thu, fri, sat, sun"
        );
        assert!(
            parse("[rates]\nschedule = \"daily\"")
                .unwrap_err()
                .to_string()
                .contains("must be a list of entries")
        );
        assert!(parse("[node\n").unwrap_err().to_string().contains("is not TOML"));
    }

    #[test]
    fn what_is_in_force_says_where_it_came_from() {
        let settings = parse("[mesh]\nmembers = [\"a:7442\", \"dns:mesh.example:7442\"]\n").unwrap();
        let printed = settings.print();
        assert!(
            printed
                .contains("members = [\"a:7442\", \"dns:mesh.example:7442\"]  # /etc/flotilla/config.toml:2")
        );
        assert!(printed.contains("expire_after = \"168h\"  # default"));
        assert!(printed.contains("# zone is not set"));
        assert!(parse(&printed).is_ok(), "what is printed can be read again");
        assert_eq!(settings.texts("mesh.members").len(), 2);
    }

    #[test]
    fn sizes_and_shares_are_counted() {
        let settings = parse("[store]\nquota = \"3MiB\"\nkeep_free = \"50%\"").unwrap();
        assert_eq!(settings.share("store.quota", Path::new("/")).unwrap(), Some(3 << 20));
        let fs = rustix::fs::statvfs("/").unwrap();
        let half = settings.share("store.keep_free", Path::new("/no/such/dir")).unwrap();
        assert_eq!(half, Some(fs.f_blocks * fs.f_frsize / 100 * 50));
    }
}
