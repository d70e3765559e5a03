//! kubelet's `CredentialProviderConfig`, read as strictly as kubelet reads it: once, at the start.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{ProviderFiles, images::Pattern};

/// Largest file read; a cluster names a handful of providers.
const FILE_LEN_MAX: u64 = 1 << 20;
/// Most providers: each that matches is run for each image.
const PROVIDERS_MAX: usize = 64;

const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const PLUGIN_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Why credential providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("cannot read {path}, which registry.credential_provider_config names")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} is larger than {FILE_LEN_MAX} bytes")]
    TooLarge(PathBuf),
    #[error("no *.json, *.yaml or *.yml in the folder {0}")]
    Empty(PathBuf),
    #[error("{path} is no CredentialProviderConfig: {why}")]
    Syntax { path: PathBuf, why: String },
    #[error("{path}, provider `{name}`: {why}")]
    Provider { path: PathBuf, name: String, why: String },
    #[error("credential provider `{name}` has no program {program} that could be run")]
    Program { name: String, program: PathBuf },
}

/// A program that has credentials for some images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Provider {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) default_cache_duration: Duration,
    match_images: Vec<String>,
}

impl Provider {
    pub(super) fn matches(&self, image: &str) -> bool {
        let Some(image) = Pattern::parse(image) else { return false };
        let patterns = self.match_images.iter().filter_map(|pattern| Pattern::parse(pattern));
        patterns.into_iter().any(|pattern| pattern.matches(&image))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

/// What a service account's token is to be; only whether there must be one is of interest here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    require_service_account: bool,
}

/// The providers in the order of the file.
pub(super) fn load(files: &ProviderFiles) -> Result<Vec<Provider>, ProviderError> {
    let mut providers: Vec<Provider> = Vec::new();
    for path in config_files(&files.config)? {
        for entry in parse(&path)?.providers {
            let refused = |why: &str| ProviderError::Provider {
                path: path.clone(),
                name: entry.name.chars().take(100).collect(),
                why: why.to_owned(),
            };
            if providers.iter().any(|known| known.name == entry.name) {
                return Err(refused("there is another of that name"));
            }
            if providers.len() >= PROVIDERS_MAX {
                return Err(refused(&format!("more than {PROVIDERS_MAX} providers")));
            }
            if entry.token_attributes.as_ref().is_some_and(|token| token.require_service_account) {
                tracing::warn!(
                    provider = entry.name,
                    "a credential provider that wants a pod's service account is not asked: there is no pod here"
                );
                continue;
            }
            check(&entry).map_err(|why| refused(&why))?;
            let program = files.bin_dir.join(&entry.name);
            if !is_program(&program) {
                return Err(ProviderError::Program { name: entry.name, program });
            }
            let cache = go_duration(&entry.default_cache_duration);
            providers.push(Provider {
                program,
                api_version: entry.api_version,
                args: entry.args.unwrap_or_default(),
                env: entry.env.into_iter().flatten().map(|v| (v.name, v.value)).collect(),
                default_cache_duration: cache.unwrap_or_default(),
                match_images: entry.match_images,
                name: entry.name,
            });
        }
    }
    Ok(providers)
}

/// The file, or those of a folder in the order of their names (kubelet 1.34 and later).
fn config_files(config: &Path) -> Result<Vec<PathBuf>, ProviderError> {
    let unread = |source| ProviderError::Read { path: config.to_owned(), source };
    if !std::fs::metadata(config).map_err(unread)?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(config).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("json" | "yaml" | "yml")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() { Err(ProviderError::Empty(config.to_owned())) } else { Ok(files) }
}

fn parse(path: &Path) -> Result<Document, ProviderError> {
    use io::Read as _;
    let unread = |source| ProviderError::Read { path: path.to_owned(), source };
    let syntax = |why: String| ProviderError::Syntax { path: path.to_owned(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unread)?;
    file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).map_err(unread)?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(ProviderError::TooLarge(path.to_owned()));
    }
    // JSON is YAML.
    let document: Document = serde_saphyr::from_str(&text).map_err(|error| syntax(one_line(&error)))?;
    if document.kind != "CredentialProviderConfig" {
        return Err(syntax(format!("its kind is `{}`", document.kind)));
    }
    if !VERSIONS.contains(&document.api_version.as_str()) {
        let known = VERSIONS.join(", ");
        return Err(syntax(format!("its apiVersion is `{}`, none of {known}", document.api_version)));
    }
    if document.providers.is_empty() {
        return Err(syntax("it names no providers".to_owned()));
    }
    Ok(document)
}

/// The first line of what the reader says; below come pictures of the text, which may hold secrets in `env`.
fn one_line(error: &serde_saphyr::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn check(entry: &Entry) -> Result<(), String> {
    if entry.name.is_empty() || matches!(entry.name.as_str(), "." | "..") || entry.name.contains(['/', ' ']) {
        return Err("its name must be that of a program in the folder".to_owned());
    }
    if !PLUGIN_VERSIONS.contains(&entry.api_version.as_str()) {
        return Err(format!(
            "its apiVersion `{}` is none of {}",
            entry.api_version,
            PLUGIN_VERSIONS.join(", ")
        ));
    }
    if entry.match_images.is_empty() {
        return Err("it needs at least one of matchImages".to_owned());
    }
    if let Some(wrong) = entry.match_images.iter().find(|pattern| Pattern::parse(pattern).is_none()) {
        return Err(format!("`{wrong}` in matchImages is no host with an optional port and path"));
    }
    if go_duration(&entry.default_cache_duration).is_none() {
        return Err(format!("its defaultCacheDuration `{}` is none", entry.default_cache_duration));
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A duration as Go writes it: `1h0m0s`, `10m`, `1.5s`, `0`. `None` for anything else, and for what is below zero.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    let units = BTreeMap::from([
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ]);
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(unit_at);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        seconds += number.parse::<f64>().ok()? * units.get(unit)?;
        rest = next;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in
            [("10m", 600_000), ("1h0m0s", 3_600_000), ("1.5s", 1500), ("0", 0), ("0s", 0), ("+2ms", 2)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "-1s", "1x", "s", "1.2.3s", "1e999h", "soon"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    fn tried(config: &str) -> Result<Vec<Provider>, ProviderError> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("ecr");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let files = ProviderFiles { config: dir.path().join("c.yaml"), bin_dir: dir.path().to_owned() };
        std::fs::write(&files.config, config).unwrap();
        load(&files)
    }

    const GOOD: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr   # the cloud's own
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: null
"#;

    #[test]
    fn yaml_and_json_are_read() {
        let from_yaml = tried(GOOD).unwrap();
        assert!(from_yaml[0].matches("1.dkr.ecr.eu-1.amazonaws.com/a") && !from_yaml[0].matches("r.io/a"));
        assert_eq!(from_yaml[0].default_cache_duration, Duration::from_hours(12));
        let json = r#"{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[
            {"name":"ecr","matchImages":["r.io"],"defaultCacheDuration":"0s","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}]}"#;
        assert!(tried(json).unwrap()[0].matches("r.io/a"));
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_provider() {
        for (from, to, says) in [
            ("kind: CredentialProviderConfig", "kind: Pod", "its kind is `Pod`"),
            ("kubelet.config.k8s.io/v1\n", "v9\n", "apiVersion is `v9`"),
            ("name: ecr ", "name: ../ecr ", "`../ecr`: its name"),
            ("name: ecr ", "name: gcr ", "no program"),
            ("\"12h\"", "soon", "`ecr`: its defaultCacheDuration `soon`"),
            ("\"*.dkr.ecr.*.amazonaws.com\"", "\"a b\"", "`a b` in matchImages"),
            ("credentialprovider.kubelet.k8s.io/v1", "v1", "`ecr`: its apiVersion `v1`"),
            ("args: null", "arg: x", "arg"),
        ] {
            let error = tried(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(tried("").is_err());
        let twice =
            format!("{GOOD}  - {{name: ecr, matchImages: [a], defaultCacheDuration: 0s, apiVersion: x}}\n");
        assert!(tried(&twice).unwrap_err().to_string().contains("another of that name"));
        let missing = ProviderFiles { config: "/nonexistent/c.yaml".into(), bin_dir: "/".into() };
        assert!(matches!(load(&missing), Err(ProviderError::Read { .. })));
    }

    #[test]
    fn a_folder_of_files_is_one_list_and_who_wants_a_pod_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let program = dir.path().join(format!("bin-{name}"));
            std::fs::write(&program, "").unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let folder = dir.path().join("conf");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("2.yml"), GOOD.replace("name: ecr", "name: bin-a")).unwrap();
        let with_pod = "    tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}\n";
        std::fs::write(folder.join("1.yaml"), GOOD.replace("name: ecr", "name: bin-b") + with_pod).unwrap();
        std::fs::write(folder.join("notes.txt"), "no yaml: [").unwrap();
        let files = ProviderFiles { config: folder, bin_dir: dir.path().to_owned() };
        let names: Vec<_> = load(&files).unwrap().into_iter().map(|provider| provider.name).collect();
        assert_eq!(names, ["bin-a"]);
    }
}
