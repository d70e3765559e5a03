//! Repositories: blobs, manifests and tags.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flotilla::oci::{Algorithm, Digest, Hasher};

/// Where the bytes of a blob are.
#[derive(Clone)]
pub(super) enum Source {
    Memory(Bytes),
    File { path: PathBuf, len: u64 },
}

impl Source {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

#[derive(Clone)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

/// Keyed by repository and digest (or tag), as text.
#[derive(Default)]
pub(super) struct Content {
    blobs: HashMap<(String, String), Source>,
    manifests: HashMap<(String, String), Manifest>,
}

impl Content {
    pub(super) fn put_blob(&mut self, repository: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        self.blobs.insert((repository.to_owned(), digest.to_string()), Source::Memory(bytes));
        digest
    }

    pub(super) fn put_file(&mut self, repository: &str, path: &Path, file: (Digest, u64)) -> (Digest, u64) {
        let source = Source::File { path: path.to_owned(), len: file.1 };
        self.blobs.insert((repository.to_owned(), file.0.to_string()), source);
        file
    }

    pub(super) fn put_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let manifest = Manifest { digest: digest.clone(), media_type: media_type.to_owned(), bytes };
        for name in tag.map(str::to_owned).into_iter().chain([digest.to_string()]) {
            self.manifests.insert((repository.to_owned(), name), manifest.clone());
        }
        digest
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        self.manifests.remove(&(repository.to_owned(), tag.to_owned()));
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Source> {
        self.blobs.get(&(repository.to_owned(), digest.to_owned())).cloned()
    }

    pub(super) fn tags(&self, repository: &str) -> Vec<&str> {
        let is_tag = |((of, name), found): &(&(String, String), &Manifest)| {
            of == repository && *name != found.digest.to_string()
        };
        let mut tags: Vec<&str> =
            self.manifests.iter().filter(is_tag).map(|((_, name), _)| name.as_str()).collect();
        tags.sort_unstable();
        tags
    }

    /// The manifests of a repository whose subject is `digest`.
    pub(super) fn referring(&self, repository: &str, digest: &str) -> Vec<Manifest> {
        let subject = |manifest: &Manifest| {
            let document: serde_json::Value = serde_json::from_slice(&manifest.bytes).ok()?;
            Some(document.get("subject")?.get("digest")?.as_str()? == digest)
        };
        let under_their_digests = self
            .manifests
            .iter()
            .filter(|((of, name), found)| of == repository && *name == found.digest.to_string());
        let found = under_their_digests.map(|(_, manifest)| manifest);
        found.filter(|manifest| subject(manifest) == Some(true)).cloned().collect()
    }

    pub(super) fn manifest(&self, repository: &str, name: &str) -> Option<Manifest> {
        self.manifests.get(&(repository.to_owned(), name.to_owned())).cloned()
    }
}

/// Digest and length of a file.
pub(super) fn read_file(path: &Path) -> io::Result<(Digest, u64)> {
    use io::Read as _;
    let mut file = fs::File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher.finish(), len));
        }
        hasher.update(&buffer[..read]);
        len += read as u64;
    }
}
