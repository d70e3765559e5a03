//! Inflates a layer and builds its tree from the tar.
