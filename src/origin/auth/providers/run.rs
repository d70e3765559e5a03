//! One question to one program: the request on its standard input, the answer on its standard output.

use std::{
    collections::BTreeMap,
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::{
    super::Credential,
    config::{Provider, go_duration},
};

/// As long as kubelet waits.
const RUN_MAX: Duration = Duration::from_secs(60);
/// Largest answer read; passwords of clouds reach 5 KiB.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// Why there is no answer. What the program wrote is left out: it may hold what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("it cannot be run")]
    Start(#[source] io::Error),
    #[error("it cannot be spoken to")]
    Talk(#[source] io::Error),
    #[error("it did not answer within {RUN_MAX:?}")]
    Late,
    #[error("it ended with {0}")]
    Failed(ExitStatus),
    #[error("its answer is larger than {ANSWER_LEN_MAX} bytes")]
    TooLarge,
    #[error("its answer is no CredentialProviderResponse of {0}")]
    Answer(String),
    #[error("it says neither Image nor Registry nor Global in cacheKeyType")]
    CacheKey,
    #[error("its cacheDuration is none")]
    CacheDuration,
}

/// What an answer counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheKey {
    Image,
    Registry,
    Global,
}

/// What a program said.
pub(super) struct Answer {
    pub(super) cache_key: CacheKey,
    /// `None`: as the file says.
    pub(super) cache_duration: Option<Duration>,
    pub(super) logins: BTreeMap<String, Credential>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: String,
    kind: String,
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
}

/// Runs the program for one image.
pub(super) async fn ask(provider: &Provider, image: &str) -> Result<Answer, RunError> {
    let said = tokio::time::timeout(RUN_MAX, talk(provider, image)).await.map_err(|_| RunError::Late)??;
    understand(&said, &provider.api_version)
}

async fn talk(provider: &Provider, image: &str) -> Result<Vec<u8>, RunError> {
    let mut child = Command::new(&provider.program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(RunError::Start)?;
    let request = serde_json::json!({
        "apiVersion": provider.api_version,
        "kind": "CredentialProviderRequest",
        "image": image,
    });
    let mut stdin = child.stdin.take().expect("it is piped");
    let mut stdout = child.stdout.take().expect("it is piped").take(ANSWER_LEN_MAX + 1);
    let asking = async {
        let written = stdin.write_all(request.to_string().as_bytes()).await;
        drop(stdin);
        // One that answers without reading is as good.
        written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
    };
    let mut said = Vec::new();
    let (asked, read) = tokio::join!(asking, stdout.read_to_end(&mut said));
    asked.and(read).map_err(RunError::Talk)?;
    if said.len() as u64 > ANSWER_LEN_MAX {
        return Err(RunError::TooLarge);
    }
    let status = child.wait().await.map_err(RunError::Talk)?;
    if status.success() { Ok(said) } else { Err(RunError::Failed(status)) }
}

fn understand(said: &[u8], api_version: &str) -> Result<Answer, RunError> {
    let other = || RunError::Answer(api_version.to_owned());
    // The reader's own error would quote the answer.
    let response: Response = serde_json::from_slice(said).map_err(|_| other())?;
    if response.api_version != api_version || response.kind != "CredentialProviderResponse" {
        return Err(other());
    }
    let cache_key = match response.cache_key_type.as_str() {
        "Image" => CacheKey::Image,
        "Registry" => CacheKey::Registry,
        "Global" => CacheKey::Global,
        _ => return Err(RunError::CacheKey),
    };
    let duration = |text: String| go_duration(&text).ok_or(RunError::CacheDuration);
    let cache_duration = response.cache_duration.map(duration).transpose()?;
    let password = |login: Login| Credential::Password { user: login.username, password: login.password };
    let logins = response.auth.into_iter().flatten().map(|(key, login)| (key, password(login))).collect();
    Ok(Answer { cache_key, cache_duration, logins })
}
