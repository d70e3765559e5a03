//! From a chain ID to the layer, the image and the repositories behind it.
