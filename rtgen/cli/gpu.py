"""``rtgen gpu ls|show``."""

from rtgen.cli.catalogue import catalogue

gpu = catalogue("gpu", "List and show the GPUs that packages are built for.")
