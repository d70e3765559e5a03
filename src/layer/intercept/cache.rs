//! What was read of manifests, kept while it fits.

use std::{collections::HashMap, sync::Arc};

use super::{
    Reading,
    image::{Image, LayerOf},
};
use crate::oci::Digest;

/// Most memory for what was read, roughly: some thousands of images. Reading one again costs a millisecond, and no
/// single manifest (8 MiB at most) can push out all others.
const BYTES_MAX: usize = 32 << 20;

/// What an entry takes besides its layers, and a layer besides what its manifest says of it: keys, digests, the ref.
const ENTRY_BYTES: usize = 512;
const LAYER_BYTES: usize = size_of::<LayerOf>() + 256;

type Key = (String, Digest);

/// Readings by namespace and manifest; the least recently used go first.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    reading: Reading,
    image: Option<Arc<Image>>,
    bytes: usize,
    used: u64,
}

impl Cache {
    pub(super) fn get(&mut self, key: &Key) -> Option<Reading> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.uses;
        Some(entry.reading.clone())
    }

    pub(super) fn insert(&mut self, key: Key, reading: Reading) {
        self.uses += 1;
        let bytes = match &reading {
            Ok(layers) => layers.manifest_len + layers.layers.len() * LAYER_BYTES + ENTRY_BYTES,
            Err(_) => ENTRY_BYTES,
        };
        let entry = Entry { reading, image: None, bytes, used: self.uses };
        self.bytes += bytes;
        if let Some(replaced) = self.entries.insert(key, entry) {
            self.bytes -= replaced.bytes;
        }
        while self.bytes > BYTES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            let removed = self.entries.remove(&oldest).expect("the key was just found");
            self.bytes -= removed.bytes;
        }
    }

    /// The image that was handed out before, if it is equal: all layers of one pull then share one.
    pub(super) fn same(&mut self, key: &Key, image: Image) -> Arc<Image> {
        let Some(entry) = self.entries.get_mut(key) else { return Arc::new(image) };
        match &entry.image {
            Some(before) if **before == image => Arc::clone(before),
            Some(_) | None => {
                let image = Arc::new(image);
                entry.image = Some(Arc::clone(&image));
                image
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::image::{Layers, Unfit},
        *,
    };
    use crate::oci::Algorithm;

    fn key(name: &str) -> Key {
        ("k8s.io".into(), Digest::of(Algorithm::Sha256, name.as_bytes()))
    }

    fn reading(name: &str, manifest_len: usize) -> Reading {
        Ok(Arc::new(Layers { manifest: key(name).1, layers: Arc::new([]), manifest_len }))
    }

    #[test]
    fn what_was_used_least_recently_goes_first() {
        let mut cache = Cache::default();
        for name in ["a", "b", "c"] {
            cache.insert(key(name), reading(name, BYTES_MAX / 3 - ENTRY_BYTES));
        }
        assert!(cache.get(&key("a")).is_some());
        cache.insert(key("d"), reading("d", BYTES_MAX / 3 - ENTRY_BYTES));
        assert!(cache.get(&key("b")).is_none());
        assert!(["a", "c", "d"].into_iter().all(|name| cache.get(&key(name)).is_some()));
        assert!(cache.bytes <= BYTES_MAX);
    }

    #[test]
    fn replacing_an_entry_does_not_count_it_twice() {
        let mut cache = Cache::default();
        for _ in 0..10 {
            cache.insert(key("a"), reading("a", BYTES_MAX / 2));
        }
        assert_eq!(cache.bytes, BYTES_MAX / 2 + ENTRY_BYTES);
        cache.insert(key("a"), Err(Arc::new(Unfit::Missing { digest: key("a").1 })));
        assert_eq!(cache.bytes, ENTRY_BYTES);
    }

    #[test]
    fn one_pull_shares_one_image() {
        let mut cache = Cache::default();
        let layers = Layers { manifest: key("a").1, layers: Arc::new([]), manifest_len: 0 };
        cache.insert(key("a"), reading("a", 0));
        let image = Image::new(&layers, &Default::default(), None);
        let first = cache.same(&key("a"), image.clone());
        assert!(Arc::ptr_eq(&first, &cache.same(&key("a"), image.clone())));
        let changed = Image { name: Some("a".into()), ..image };
        assert!(!Arc::ptr_eq(&first, &cache.same(&key("a"), changed)));
    }
}
