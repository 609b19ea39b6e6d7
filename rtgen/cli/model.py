"""``rtgen model ls|show``."""

from rtgen.cli.catalogue import catalogue

model = catalogue("model", "List and show the models.")
