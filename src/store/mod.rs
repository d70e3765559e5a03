//! Blobs on disk: arriving, proven, linked, expired.
