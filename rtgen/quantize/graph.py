"""A component's graph with quantized layers: the exported graph, rewritten for what the quantize step decided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.errors import CheckpointError
from rtgen.models.safetensors_index import StoredTensor, read_index
from rtgen.quantize.selection import checkpoint_name

if TYPE_CHECKING:
    import onnx_ir as ir

    from rtgen.passes.quantized_layer import QuantizedLayer
    from rtgen.quantize.result import LayerResult, QuantizationResult

_CODES: Final[Mapping[str, tuple[str, int]]] = {
    "int4": ("INT4", 2),
    "int8": ("INT8", 1),
    "fp8": ("FLOAT8E4M3FN", 1),
    "fp4": ("FLOAT4E2M1", 2),
}
"""By weight format: the element type of the codes, and how many a byte holds."""
_TYPES: Final = {"float32": "FLOAT", "float16": "FLOAT16", "uint8": "FLOAT8E4M3FN"}
"""By stored type, the element type of everything but codes; stored bytes are scales in e4m3."""
_PARTS: Final = ("scales", "scales_global", "input_scale", "pre_scale", "shift", "low_rank_down", "low_rank_up", "bias")


def write_graph(graph: Path, weights: Path, result: QuantizationResult, folder: Path) -> None:
    """Write the quantized form of ``graph`` into ``folder``, under the same name.

    ``weights`` is the safetensors file with all of the component's weights, as ``rtgen.quantize.result`` describes it.
    The new graph refers to it, and to no other, by its bare name. Raises CheckpointError for a file that lacks a tensor
    or has it in another shape, or a result that names a layer which the graph does not have; OSError.
    """
    import onnx_ir as ir

    from rtgen.passes.base import run_passes
    from rtgen.passes.bind_weights import BindWeights

    model, index = ir.load(graph), read_index(weights, codes=True)
    layers = quantized_layers(model.graph, index, result)
    taken = {layer.initializer for layer in layers}
    kept = {
        name: _kept(index, checkpoint_name(name), value.const_value)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and name not in taken
    }
    run_passes(model, [*passes_for(layers), BindWeights(kept)])
    ir.save(model, folder / graph.name)


def passes_for(layers: list[QuantizedLayer]) -> list[ir.passes.PassBase]:
    """The passes that write layers, in order. Layers with int4 activations become one node each, all others several."""
    from rtgen.passes.add_low_rank import AddLowRank
    from rtgen.passes.emit_w4a4 import EmitW4A4
    from rtgen.passes.fold_input_scales import FoldInputScales
    from rtgen.passes.quantize_activations import QuantizeActivations
    from rtgen.passes.quantize_dynamically import QuantizeDynamically
    from rtgen.passes.quantize_weights import QuantizeWeights
    from rtgen.passes.scale_inputs import ScaleInputs

    others = [layer for layer in layers if layer.activations != "int4"]
    static = [layer for layer in others if not layer.is_dynamic]
    return [
        EmitW4A4(layers),
        ScaleInputs(others),
        AddLowRank(others),
        QuantizeActivations(static),
        QuantizeWeights(static),
        QuantizeDynamically(layer for layer in others if layer.is_dynamic),
        FoldInputScales(),
    ]


def quantized_layers(
    graph: ir.Graph, index: Mapping[str, StoredTensor], result: QuantizationResult
) -> list[QuantizedLayer]:
    """The layers of ``result`` that have codes, found in the graph and in the file. Raises CheckpointError."""
    from rtgen.passes.linear_layers import linear_layers

    places = {checkpoint_name(name): place for name, place in linear_layers(graph).items()}
    found = []
    for layer in result.layers:
        if layer.weights == "float":
            continue
        if layer.name not in places:
            raise CheckpointError(f"the graph has no linear layer {layer.name}, which the quantization result names")
        place = places[layer.name]
        found.append(_quantized(layer, place.weight.name or "", place.shape, index))
    return found


def _quantized(
    layer: LayerResult, initializer: str, shape: tuple[int, int], index: Mapping[str, StoredTensor]
) -> QuantizedLayer:
    from rtgen.passes.quantized_layer import QuantizedLayer

    assert layer.weights != "float"
    dtype, packed = _CODES[layer.weights]
    codes = _stored(index, f"{layer.name}.codes")
    if codes.length * packed != shape[0] * shape[1]:
        raise CheckpointError(f"{layer.name} has {codes.length} bytes of {layer.weights} codes for a matrix {shape}")
    tensors = {"codes": _external(codes, f"{layer.name}.codes", dtype, shape)}
    for part in _PARTS:
        name = f"{layer.name}.{part}"
        if name in index:
            tensors[part] = _external(index[name], name, _TYPES[index[name].dtype], index[name].shape)
    for part, expected in _shapes(layer, shape).items():
        if part not in tensors or tuple(tensors[part].shape) != expected:
            raise CheckpointError(f"{layer.name} has no {part} of shape {expected}")
    return QuantizedLayer(
        initializer=initializer,
        weights=layer.weights,
        tensors=tensors,
        block=layer.block,
        activations=layer.activations,
        group=layer.group,
        rotated=layer.rotated,
    )


def _shapes(layer: LayerResult, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """What must be beside the codes of a matrix, and in which shape."""
    rows, columns = shape
    whole: tuple[int, ...] = () if layer.weights == "fp8" else (rows,)
    shapes = {"scales": whole if layer.block is None else (rows, columns // layer.block)}
    if layer.weights == "fp4":
        shapes |= {"scales_global": ()}
    if layer.activations in ("fp8", "fp4"):
        shapes |= {"input_scale": ()}
    if layer.smoothed or layer.activations == "int4":
        shapes |= {"pre_scale": (columns,)}
    if layer.activations == "int4":
        shapes |= {"shift": (columns,), "bias": (rows,)}
    if layer.rank:
        shapes |= {"low_rank_down": (layer.rank, columns), "low_rank_up": (rows, layer.rank)}
    return shapes


def _stored(index: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    if name not in index:
        raise CheckpointError(f"the quantized weights lack {name}")
    return index[name]


def _kept(index: Mapping[str, StoredTensor], name: str, tensor: ir.ExternalTensor) -> StoredTensor:
    stored = _stored(index, name)
    if stored.shape != tensor.shape.numpy():
        raise CheckpointError(f"{name} has shape {stored.shape}, the graph needs {tensor.shape.numpy()}")
    return stored


def _external(stored: StoredTensor, name: str, dtype: str, shape: tuple[int, ...]) -> ir.ExternalTensor:
    import onnx_ir as ir

    return ir.ExternalTensor(
        stored.file.name,
        stored.offset,
        stored.length,
        ir.DataType[dtype],
        shape=ir.Shape(shape),
        name=name,
        base_dir=str(stored.file.parent),
    )
