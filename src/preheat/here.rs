//! One node's part: the bytes into its store, and then into its containerd where that is wanted.
//!
//! The bytes come first in both cases, from the mesh. containerd, asked through CRI as kubelet asks it, then finds
//! every layer on this node, so that nothing is handed over and nothing leaves the registry a second time.

use std::{pin::pin, time::Duration};

use futures_util::future::try_join_all;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{Errand, Parts, Place, PreheatError, Progress, State, image};
use crate::{
    oci::{Platform, Reference},
    origin::{Asker, Credential, Pass},
    pull::{BySource, Pull},
    wire::cri::AuthConfig,
};

/// How often progress is told: five times a second is as much as a person sees.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Does the errand on this node.
pub(super) async fn run(
    parts: &Parts,
    errand: &Errand,
    asker: &Asker,
    progress: &watch::Sender<Progress>,
) -> Result<(), PreheatError> {
    if let (Place::Containerd, Some(platform)) = (errand.place, &errand.platform)
        && !platform.takes(&Platform::own())
    {
        let (platform, own) = (platform.to_string(), Platform::own().to_string());
        return Err(PreheatError::ForeignPlatform { platform, own });
    }
    progress.send_modify(|progress| progress.state = State::Pulling);
    let blobs = image::blobs(parts, errand, asker).await?;
    progress.send_modify(|progress| progress.total = blobs.iter().map(|blob| blob.len).sum());
    // Held until the end: what nobody holds may leave a full store.
    let pulls: Vec<Pull> = blobs.into_iter().map(|blob| parts.pulls.start(blob)).collect();
    arrive(&pulls, progress).await?;
    if errand.place == Place::Containerd {
        progress.send_modify(|progress| progress.state = State::Unpacking);
        let auth = auth(parts, &errand.image, asker).await;
        let name = cri_name(errand);
        parts.containerd.pull_image(&name, auth).await.map_err(PreheatError::Containerd)?;
    }
    Ok(())
}

/// Waits until all are here; the first that fails ends it.
async fn arrive(pulls: &[Pull], progress: &watch::Sender<Progress>) -> Result<(), PreheatError> {
    let mut all = pin!(try_join_all(pulls.iter().map(Pull::proven)));
    let mut tick = tokio::time::interval(TELL_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ended = tokio::select! {
            ended = &mut all => Some(ended),
            _ = tick.tick() => None,
        };
        let bytes = sum(pulls);
        progress.send_if_modified(|progress| std::mem::replace(&mut progress.bytes, bytes) != bytes);
        if let Some(ended) = ended {
            return ended.map(drop).map_err(|source| PreheatError::Pull { source });
        }
    }
}

fn sum(pulls: &[Pull]) -> BySource {
    let add = |sum: BySource, bytes: BySource| BySource {
        local: sum.local + bytes.local,
        peer: sum.peer + bytes.peer,
        origin: sum.origin + bytes.origin,
    };
    pulls.iter().map(|pull| pull.status().bytes).fold(BySource::default(), add)
}

/// As kubelet will name it: by its tag where it has one, so that a pod that names the tag finds it.
fn cri_name(errand: &Errand) -> String {
    let Errand { image, root, .. } = errand;
    match (&image.digest, &image.tag) {
        (None, Some(_)) | (Some(_), _) => image.to_string(),
        (None, None) => Reference { digest: Some(root.digest.clone()), ..image.clone() }.to_string(),
    }
}

/// What containerd is to show the registry: what whoever ordered the image gave, else what this node has.
async fn auth(parts: &Parts, image: &Reference, asker: &Asker) -> Option<AuthConfig> {
    match asker {
        Asker::Client(Some(pass)) => of_pass(pass),
        Asker::Client(None) => None,
        Asker::Lent(lent) => Some(of_credential(lent.credential().clone())),
        Asker::Node => parts.origin.login(&image.repository).await.map(of_credential),
    }
}

fn of_credential(credential: Credential) -> AuthConfig {
    match credential {
        Credential::Password { user, password } => {
            AuthConfig { username: user, password, ..AuthConfig::default() }
        }
        Credential::IdentityToken(identity_token) => AuthConfig { identity_token, ..AuthConfig::default() },
    }
}

fn of_pass(pass: &Pass) -> Option<AuthConfig> {
    let (scheme, value) = std::str::from_utf8(pass.as_bytes()).ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(AuthConfig { registry_token: value.trim().to_owned(), ..AuthConfig::default() });
    }
    let is_basic = scheme.eq_ignore_ascii_case("basic");
    is_basic.then(|| Credential::from_login(value)).flatten().map(of_credential)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::{oci::Digest, preheat::Root};

    #[test]
    fn a_pass_becomes_what_cri_takes() {
        let pass = |text: &'static str| of_pass(&Pass::new(HeaderValue::from_static(text)));
        let basic = pass("Basic bWU6c2U6Y3JldA==").unwrap();
        assert_eq!((basic.username.as_str(), basic.password.as_str()), ("me", "se:cret"));
        assert_eq!(pass("bearer abc").unwrap().registry_token, "abc");
        assert_eq!(pass("Basic !"), None);
        assert_eq!(pass("Negotiate bWU6cA=="), None);
    }

    #[test]
    fn kubelets_name_is_kept() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let name = |text: &str| {
            let root = Root { digest: digest.clone(), len: 0, is_index: false };
            let image = text.parse().unwrap();
            cri_name(&Errand { image, root, platform: None, place: Place::Containerd })
        };
        assert_eq!(name("r.local/a:v1"), "r.local/a:v1");
        assert_eq!(name(&format!("r.local/a@{digest}")), format!("r.local/a@{digest}"));
    }
}
