"""The exporter call that all components share, and what it returns."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rtgen.engine.manifest import StateEntry, TensorEntry

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor, nn

OPSET = 24
"""TensorScatter, which updates the K/V ring in place, is new in 24."""


CODED_ATTRIBUTES = ("bits", "pool", "sink", "keep", "recent")
"""Of the torch op of ``rtgen::QuantizedKVCacheAttention``, in order; the node has its heads' width besides."""


@dataclass(frozen=True)
class ExportedGraph:
    """A component's graph, and its tensor table with symbolic shapes."""

    model: onnx_ir.Model
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    states: tuple[StateEntry, ...] = ()


def export_graph(
    module: nn.Module,
    arguments: Mapping[str, Tensor | Sequence[Tensor]],
    dynamic_shapes: Mapping[str, Any],
    inputs: Sequence[TensorEntry],
    outputs: Sequence[TensorEntry],
    states: Sequence[StateEntry] = (),
) -> ExportedGraph:
    """Export ``module`` with keyword ``arguments`` through torch.export; inputs and outputs are named by the table.

    The ONNX graph keeps parameters as initializers under their own names.
    """
    import torch

    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=dict(arguments),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dict(dynamic_shapes),
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            custom_translation_table=_translations(),
            optimize=False,  # rtgen.passes.simplify does it, and leaves weights as they are stored
            verbose=False,
            report=False,
        )
    assert program is not None
    model = program.model
    names = [value.name for value in model.graph.inputs]
    if names != [tensor.name for tensor in inputs]:
        raise AssertionError(f"the exporter changed the inputs: {names}")
    return ExportedGraph(model, tuple(inputs), tuple(outputs), tuple(states))


def _translations() -> dict[Any, Callable[..., Any]]:
    """How torch ops of rtgen's become nodes: those of its plugins in the domain ``rtgen``."""
    import torch
    from onnxscript.values import Op, Opset

    from rtgen.export.coded_convolution import translations
    from rtgen.plugins import kv_cache_attention, quantized_kv_cache_attention
    from rtgen.plugins.base import DOMAIN, DOMAIN_VERSION

    kv_cache_attention.torch_op()
    quantized_kv_cache_attention.torch_op()
    coded = quantized_kv_cache_attention.PLUGIN
    floats, codes = (
        Op(Opset(DOMAIN, DOMAIN_VERSION), plugin.name, plugin.schema()) for plugin in (kv_cache_attention.PLUGIN, coded)
    )

    def over_floats(*tensors: Any) -> Any:
        return floats(*tensors)

    def over_codes(*arguments: Any) -> Any:
        tensors, attributes = arguments[: len(coded.inputs)], arguments[len(coded.inputs) :]
        # Attributes come in order, without the last ones where those are the defaults.
        given = dict(zip(CODED_ATTRIBUTES, attributes, strict=False))
        return codes(*tensors, **{**coded.attributes, **given, "head_dim": int(tensors[0].shape[3])})

    return {
        **translations(),
        torch.ops.rtgen.kv_cache_attention.default: over_floats,
        torch.ops.rtgen.quantized_kv_cache_attention.default: over_codes,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of optional packages and internals that a user can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
