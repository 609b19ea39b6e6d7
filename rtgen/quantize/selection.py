"""Which weights a recipe quantizes."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rtgen.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from rtgen.config.recipe import Quantization

IN_BLOCKS = "blocks."
"""Names of the layers that are calibrated start with it. The few others are small, and each is felt by every block."""


def checkpoint_name(initializer: str) -> str:
    """The name of a weight in its checkpoint: the export's wrapper and ``BindWeights`` add a prefix and a suffix."""
    return initializer.removeprefix("model.").removesuffix(".stored")


def linear_shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Checkpoint names and shapes ``[out, in]`` of the weights of all linear layers, in the module's order."""
    from torch import nn

    return {
        f"{name}.weight": (layer.out_features, layer.in_features)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


def reasons_to_keep(shapes: Mapping[str, tuple[int, int]], settings: Quantization) -> dict[str, str]:
    """For each matrix, why the recipe leaves it as it is; empty where it is meant to be quantized.

    Raises UsageError when none is.
    """
    reasons = {name: _reason(name, shape, settings) for name, shape in shapes.items()}
    if all(reasons.values()):
        raise UsageError(
            "the denoiser has no matrix that the recipe's [quantization] section lets it quantize",
            hint="rtgen recipe show NAME shows the section",
        )
    return reasons


def _reason(name: str, shape: tuple[int, int], settings: Quantization) -> str:
    rows, columns = shape
    pattern = next((pattern for pattern in settings.exclude if fnmatchcase(name, pattern)), None)
    shared = settings.weights.block or 1
    if settings.is_calibrated and not name.startswith(IN_BLOCKS):
        return "it is not in a block"
    if pattern is not None:
        return f"the recipe excludes {pattern}"
    if rows * columns < settings.minimum_elements:
        return f"it has fewer than {settings.minimum_elements} weights"
    return f"its rows of {columns} have no whole blocks of {shared}" if columns % shared else ""
