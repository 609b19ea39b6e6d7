"""Checkpoints in the published layouts, small and random, and the way back from them to our modules."""

import torch
from safetensors.torch import load_file

from rtgen.models.checkpoints.convert import convert
from rtgen.models.checkpoints.layouts import Candidate, Source
from rtgen.progress import SilentProgress


def source(piece, path, adapter=None, **candidate):
    return Source(piece, Candidate("someone/somewhere", path.name, **candidate), path, adapter)


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def converted(found, wanted, folder, dtype="float32", **options):
    """The tensors that conversion wrote, by name."""
    files = convert("part", wanted, found, folder, dtype=dtype, progress=SilentProgress(), **options)
    return {name: value for file in files for name, value in load_file(file).items()}


def filled(module, found, folder):
    """The module with a source's weights, through conversion."""
    tensors = converted(found, shapes(module), folder)
    missing, surplus = module.load_state_dict(tensors, strict=False)
    assert not surplus and not {name for name in missing if name in shapes(module)}
    return module.eval().requires_grad_(False)


def deviation(found, expected):
    """Relative error in the Euclidean norm."""
    return float((found - expected).norm() / expected.norm())


def state(module, prefix=""):
    return {prefix + name: value.detach().clone() for name, value in module.named_parameters()}


def equal(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)
