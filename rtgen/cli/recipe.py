"""``rtgen recipe ls|show``."""

from rtgen.cli.catalogue import catalogue

recipe = catalogue("recipe", "List and show the numeric recipes.")
