"""Data: manifests, media readers, clip loading, data sets, and the built-in demo set."""
