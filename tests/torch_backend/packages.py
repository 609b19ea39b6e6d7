"""Torch packages of the models for tests, each built once into their store."""

from rtgen.build.walk import build
from rtgen.progress import SilentProgress


def torch_package(model, **fields):
    """The folder of a package for the processor, or what ``fields`` of the request say."""
    return build(model.request(**({"backend": "torch"} | fields)), SilentProgress()).package
