"""Programs that make and train what the toolchain bundles."""
