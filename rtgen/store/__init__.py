"""The content-addressed store of stages and engine packages: keys, locks, atomic writes, verification, pruning."""
