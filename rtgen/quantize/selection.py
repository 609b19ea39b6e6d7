"""Which weights of a graph a recipe quantizes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rtgen.passes.quantize_weights import matrices

if TYPE_CHECKING:
    import onnx_ir as ir

    from rtgen.config.recipe import WeightQuantization


def checkpoint_name(initializer: str) -> str:
    """The name of a weight in its checkpoint: the export's wrapper and ``BindWeights`` add a prefix and a suffix."""
    return initializer.removeprefix("model.").removesuffix(".stored")


def selected(graph: ir.Graph, settings: WeightQuantization) -> dict[str, tuple[int, int]]:
    """Initializer names and shapes ``[out, in]`` of the matrices to quantize, in the graph's order.

    Matrices whose input dimension is no multiple of the block stay as they are, as do small and excluded ones.
    """
    found = {}
    for name, value in matrices(graph).items():
        assert value.shape is not None  # a matrix has one
        rows, columns = value.shape.numpy()
        is_excluded = any(fnmatchcase(checkpoint_name(name), pattern) for pattern in settings.exclude)
        if columns % settings.block == 0 and rows * columns >= settings.minimum_elements and not is_excluded:
            found[name] = (rows, columns)
    return found
