//! Manifests and indexes by tag and by digest, lists of tags, referrers.

use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{Method, StatusCode, header};

use super::{
    Door,
    reply::{self, Reply, Sort},
    route::Asked,
    tags::Question,
};
use crate::{
    oci::Digest,
    origin::{Asker, Kind, OriginError, Passed, Told},
    pull::{Meaning, PullError, TagKey, Want},
};

/// What is asked for where the client does not say what it takes.
const EVERY_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

/// One request of a client.
pub(super) struct Client {
    pub(super) asker: Asker,
    /// Only the head is wanted.
    pub(super) head: bool,
    /// What it takes; empty if it does not say.
    pub(super) accept: String,
    pub(super) range: Option<String>,
}

/// A manifest as it is given out.
struct Document {
    digest: Digest,
    len: u64,
    media_type: String,
    /// Absent where only the head is wanted.
    bytes: Option<Bytes>,
    warning: Option<&'static str>,
}

impl Document {
    fn reply(self) -> Reply {
        let mut reply = reply::document(self.bytes.unwrap_or_default(), &self.media_type);
        reply::name(&mut reply, &self.digest);
        reply::set(&mut reply, header::CONTENT_LENGTH, &self.len.to_string());
        if let Some(warning) = self.warning {
            reply::set(&mut reply, header::WARNING, warning);
        }
        reply
    }
}

impl Door {
    pub(super) async fn tag(&self, asked: &Asked, tag: &str, client: &Client) -> Reply {
        let document = match self.meaning(asked, tag, client).await {
            Ok((Tagged::Is(meaning), warning)) => self.named(asked, meaning, client, warning).await,
            Ok((Tagged::Came(document), _)) => Ok(document),
            Err(error) => Err(error),
        };
        document.map_or_else(|error| reply::refused(Sort::Manifest, &error), Document::reply)
    }

    pub(super) async fn manifest(&self, asked: &Asked, digest: &Digest, client: &Client) -> Reply {
        let grant = self.gate.grant(&asked.repository, (Kind::Manifest, digest), &client.asker).await;
        let grant = match grant {
            Ok(grant) => grant,
            Err(error) => return reply::refused(Sort::Manifest, &error),
        };
        let warning = grant.unchecked.then_some(reply::UNCHECKED);
        let lens = match grant.len.or_else(|| self.len_here(asked, digest)) {
            Some(len) => vec![len],
            None => self.parts.pulls.lens_elsewhere(digest).await,
        };
        // Bytes say themselves what they are; a hint is for a head without bytes.
        let hinted = client.head && !self.parts.store.holds(digest);
        let hint = self.known.media_type_of(&asked.repository, digest).filter(|_| hinted);
        let mut document = None;
        for len in lens {
            let meaning =
                Meaning { digest: digest.clone(), len, media_type: hint.clone().unwrap_or_default() };
            let named = self.named(asked, meaning, client, warning).await;
            let found = named.is_ok();
            document = Some(named);
            if found {
                break;
            }
        }
        match document {
            Some(Ok(document)) => document.reply(),
            Some(Err(error)) => reply::refused(Sort::Manifest, &error),
            None if grant.unchecked => {
                reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "nobody here knows it")
            }
            None => self.passed(asked, digest, client).await,
        }
    }

    /// What the registry answers to this very question.
    async fn passed(&self, asked: &Asked, digest: &Digest, client: &Client) -> Reply {
        let (path, digest) = (format!("manifests/{digest}"), Some(digest.clone()));
        match self.pass_on(asked, (Method::GET, path), client, digest).await {
            Ok(told) => self.came(asked, told).reply(),
            Err(error) => reply::refused(Sort::Manifest, &error),
        }
    }

    /// Lists of tags and of referrers: the registry's own, with links that lead back here.
    pub(super) async fn list(&self, asked: &Asked, path: String, client: &Client) -> Reply {
        let method = if client.head { Method::HEAD } else { Method::GET };
        match self.pass_on(asked, (method, path), client, None).await {
            Ok(told) => {
                let media_type = told.media_type.as_deref().unwrap_or("application/json");
                let mut reply = reply::document(told.bytes, media_type);
                if let Some(link) = told.link.and_then(|link| link_here(asked, &link)) {
                    reply::set(&mut reply, header::LINK, &link);
                }
                reply
            }
            Err(error) => reply::refused(Sort::Manifest, &error),
        }
    }

    async fn pass_on(
        &self,
        asked: &Asked,
        (method, path): (Method, String),
        client: &Client,
        digest: Option<Digest>,
    ) -> Result<Told, OriginError> {
        self.gate.is_up(&asked.repository)?;
        let accept = if client.accept.is_empty() { EVERY_MANIFEST } else { &client.accept };
        let passed = Passed {
            repository: asked.repository.clone(),
            method,
            path,
            query: asked.query.clone(),
            accept: accept.to_owned(),
            asker: client.asker.clone(),
            digest,
        };
        let told = self.parts.origin.pass_on(&passed).await;
        self.gate.heard(&asked.repository, &told);
        told
    }

    /// What a tag stands for, and what is to be said of that.
    async fn meaning(
        &self,
        asked: &Asked,
        tag: &str,
        client: &Client,
    ) -> Result<(Tagged, Option<&'static str>), OriginError> {
        let question = Question {
            repository: asked.repository.clone(),
            tag: tag.to_owned(),
            accept: *blake3::hash(client.accept.as_bytes()).as_bytes(),
            credential: self.gate.hash(&client.asker),
        };
        if let Some(meaning) = self.tags.get(&question, Instant::now()) {
            return Ok((Tagged::Is(meaning), None));
        }
        let path = format!("manifests/{tag}");
        match self.pass_on(asked, (Method::HEAD, path.clone()), client, None).await {
            Ok(Told { digest: Some(digest), len: Some(len), media_type, .. }) => {
                self.gate.granted(&asked.repository, &digest, len, &client.asker).await;
                let meaning = Meaning { digest, len, media_type: media_type.unwrap_or_default() };
                self.keep(asked, tag, client, meaning.clone());
                self.tags.note(question, meaning.clone(), Instant::now());
                Ok((Tagged::Is(meaning), None))
            }
            Err(error) if error.is_outage() => self.remembered(asked, tag, client).await.ok_or(error),
            Err(error) if error.status() == Some(404) => {
                self.parts.pulls.tags().forget(&TagKey::of(&asked.repository, tag));
                Err(error)
            }
            Err(error) if client.head || error.refusal().is_none() => Err(error),
            // A registry that does not say what its tag is must say what it has, and one that refuses, why: the answer to
            // a HEAD has no body.
            Ok(_) | Err(_) => {
                let told = self.pass_on(asked, (Method::GET, path), client, None).await?;
                let document = self.came(asked, told);
                self.gate.granted(&asked.repository, &document.digest, document.len, &client.asker).await;
                let (digest, media_type) = (document.digest.clone(), document.media_type.clone());
                self.keep(asked, tag, client, Meaning { digest, len: document.len, media_type });
                Ok((Tagged::Came(document), None))
            }
        }
    }

    /// Keeps what the registry has said of a tag, for when it is down. Of two forms of an image that is the one which
    /// clients commonly take.
    fn keep(&self, asked: &Asked, tag: &str, client: &Client, meaning: Meaning) {
        let takes_indexes = ["index", "manifest.list", "*/*"].iter().any(|of| client.accept.contains(of));
        if takes_indexes || client.accept.is_empty() {
            self.parts.pulls.tags().note(TagKey::of(&asked.repository, tag), meaning, SystemTime::now());
        }
    }

    /// What the tag was when the registry last answered, where that may be said to this client.
    async fn remembered(
        &self,
        asked: &Asked,
        tag: &str,
        client: &Client,
    ) -> Option<(Tagged, Option<&'static str>)> {
        if !self.gate.is_missed(&asked.repository).await {
            return None;
        }
        let (meaning, is_own) = self.parts.pulls.meaning(&TagKey::of(&asked.repository, tag)).await?;
        self.gate.grant(&asked.repository, (Kind::Manifest, &meaning.digest), &client.asker).await.ok()?;
        let (repository, heard_by) = (&asked.repository, if is_own { "this node" } else { "members" });
        tracing::info!(%repository, tag, digest = %meaning.digest, heard_by, "the tag as it was");
        Some((Tagged::Is(meaning), Some(reply::STALE)))
    }

    /// A manifest whose digest and length are known, and that this client may have.
    async fn named(
        &self,
        asked: &Asked,
        meaning: Meaning,
        client: &Client,
        warning: Option<&'static str>,
    ) -> Result<Document, OriginError> {
        let Meaning { digest, len, media_type } = meaning;
        let known = !media_type.is_empty();
        if client.head && known {
            return Ok(Document { digest, len, media_type, bytes: None, warning });
        }
        let bytes = match self.fetch(asked, &digest, len, client).await {
            Ok(bytes) => bytes,
            Err(why) => {
                tracing::info!(%digest, "a manifest comes from its registry alone: {}", crate::pull::chain_of(&*why));
                let path = format!("manifests/{digest}");
                let told = self.pass_on(asked, (Method::GET, path), client, Some(digest)).await?;
                return Ok(Document { warning, ..self.came(asked, told) });
            }
        };
        let own = self.known.read(&asked.repository, &bytes).to_owned();
        let media_type = if known { media_type } else { own };
        self.known.note(&asked.repository, digest.clone(), len, media_type.clone());
        Ok(Document { digest, len, media_type, bytes: Some(bytes), warning })
    }

    /// A manifest that the registry has sent.
    fn came(&self, asked: &Asked, told: Told) -> Document {
        let own = self.known.read(&asked.repository, &told.bytes).to_owned();
        let len = told.bytes.len() as u64;
        let digest = told.digest.unwrap_or_else(|| Digest::of(crate::oci::Algorithm::Sha256, &told.bytes));
        let media_type = told.media_type.unwrap_or(own);
        self.known.note(&asked.repository, digest.clone(), len, media_type.clone());
        Document { digest, len, media_type, bytes: Some(told.bytes), warning: None }
    }

    /// The bytes of a manifest: from here, from the mesh, from its registry.
    async fn fetch(
        &self,
        asked: &Asked,
        digest: &Digest,
        len: u64,
        client: &Client,
    ) -> Result<Bytes, std::sync::Arc<PullError>> {
        let want = Want {
            digest: digest.clone(),
            len,
            origins: vec![asked.repository.clone()],
            kind: Kind::Manifest,
            asker: client.asker.clone(),
            image: Some(asked.repository.to_string()),
        };
        self.parts.pulls.document(want).await
    }
}

/// What asking for a tag gives: what it stands for, or the manifest itself.
enum Tagged {
    Is(Meaning),
    Came(Document),
}

/// A registry's `Link: </v2/a/tags/list?n=2&last=x>; rel="next"`, as this client reaches it.
fn link_here(asked: &Asked, link: &str) -> Option<String> {
    let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
    let (path, query) = target.split_once('?')?;
    let (_, below) = path.split_once(&format!("/v2/{}/", asked.repository.path))?;
    let namespace = match asked.by_namespace {
        true => format!("&ns={}", asked.repository.host),
        false => String::new(),
    };
    Some(format!("</v2/{}/{below}?{query}{namespace}>{rest}", asked.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::registry::route::{Route, route};

    #[test]
    fn links_lead_back_to_the_mirror() {
        let asked = |path: &str, query: Option<&str>| match route(path, query, "docker.io") {
            Ok(Route::Of(asked)) => asked,
            other => panic!("{other:?}"),
        };
        let link = "</v2/a/tags/list?last=x&n=2>; rel=\"next\"";
        let prefixed = asked("/v2/r.local/a/tags/list", None);
        assert_eq!(
            link_here(&prefixed, link).as_deref(),
            Some("</v2/r.local/a/tags/list?last=x&n=2>; rel=\"next\"")
        );
        let named = asked("/v2/a/tags/list", Some("ns=r.local"));
        assert_eq!(
            link_here(&named, link).as_deref(),
            Some("</v2/a/tags/list?last=x&n=2&ns=r.local>; rel=\"next\"")
        );
        let absolute = "<https://r.local/v2/a/tags/list?last=x>; rel=\"next\"";
        assert!(link_here(&prefixed, absolute).is_some_and(|link| link.starts_with("</v2/r.local/a/")));
        assert_eq!(link_here(&prefixed, "nonsense"), None);
    }
}
