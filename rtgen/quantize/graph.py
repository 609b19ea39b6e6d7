"""A component's graph with quantized weights, written beside the file that holds all of its weights.

Weights are mapped from the checkpoint and written one by one: memory holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rtgen.errors import CheckpointError, UsageError
from rtgen.quantize.selection import checkpoint_name, selected
from rtgen.quantize.weight_file import PlannedTensor, WeightFile

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from rtgen.config.recipe import WeightQuantization
    from rtgen.passes.quantize_weights import QuantizedMatrix

Advance = Callable[[float, str], None]
"""Told the fraction that is done and the name of the weight that comes next."""


def quantize_graph(graph: Path, weights: Path, folder: Path, settings: WeightQuantization, advance: Advance) -> str:
    """Write the quantized form of ``graph``, whose external data lie in ``weights``, into ``folder``.

    Returns the name of the file with all weights, quantized or not, that the new graph refers to. Raises UsageError
    for a graph without a matrix to quantize, CheckpointError for weights that cannot be quantized, OSError.
    """
    import onnx_ir as ir

    from rtgen.passes.base import run_passes
    from rtgen.passes.bind_weights import BindWeights
    from rtgen.passes.quantize_weights import QuantizeWeights

    model = ir.load(graph)
    chosen = selected(model.graph, settings)
    if not chosen:
        raise UsageError(
            f"the {graph.stem.replace('_', ' ')} has no matrix that the recipe's [weights] section lets it quantize",
            hint="rtgen recipe show NAME shows the section",
        )
    kept = {name: tensor for name, tensor in _external(model.graph).items() if name not in chosen}
    file = WeightFile(folder / f"{graph.stem}.int4.safetensors", _plan(chosen, kept, settings.block))
    _write(file, model.graph, weights, chosen, settings.block, advance)
    quantized = {name: _quantized(file, name, shape, settings.block) for name, shape in chosen.items()}
    stored = {name: file.stored(name) for name in kept}
    run_passes(model, [QuantizeWeights(quantized), BindWeights(stored)])
    ir.save(model, folder / graph.name)
    return file.path.name


def _external(graph: ir.Graph) -> dict[str, ir.ExternalTensor]:
    import onnx_ir as ir

    values = {name: value.const_value for name, value in graph.initializers.items()}
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, ir.ExternalTensor)}


def _plan(
    chosen: Mapping[str, tuple[int, int]], kept: Mapping[str, ir.ExternalTensor], block: int
) -> list[PlannedTensor]:
    planned = [PlannedTensor(name, _type(tensor), _shape(tensor)) for name, tensor in kept.items()]
    for name, (rows, columns) in chosen.items():
        planned.append(PlannedTensor(f"{name}.codes", "uint8", (rows, columns // 2)))
        planned.append(PlannedTensor(f"{name}.scales", "float16", (rows, columns // block)))
    return planned


def _type(tensor: ir.ExternalTensor) -> str:
    from rtgen.passes.bind_weights import DATA_TYPES

    return next(name for name, dtype in DATA_TYPES.items() if dtype == tensor.dtype)


def _shape(tensor: ir.ExternalTensor) -> tuple[int, ...]:
    return tensor.shape.numpy()


def _write(
    file: WeightFile,
    graph: ir.Graph,
    weights: Path,
    chosen: Mapping[str, tuple[int, int]],
    block: int,
    advance: Advance,
) -> None:
    tensors = _external(graph)
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    with file.create() as stream:
        for name, tensor in tensors.items():
            advance(done / total, checkpoint_name(name))
            if name in chosen:
                _write_quantized(file, stream, name, _mapped(tensor, weights), block)
            else:
                file.write(stream, name, _mapped(tensor, weights).reshape(-1).view("uint8").data)
            done += tensor.nbytes
    advance(1.0, "")


def _write_quantized(file: WeightFile, stream: BinaryIO, name: str, weight: NDArray[np.floating], block: int) -> None:
    from rtgen.quantize.weight_only import pack_int4, quantize_blocks

    try:
        codes, scales = quantize_blocks(weight, block)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint_name(name)} cannot be quantized: {error}") from error
    file.write(stream, f"{name}.codes", memoryview(pack_int4(codes)))
    file.write(stream, f"{name}.scales", scales.reshape(-1).view("uint8").data)


def _mapped(tensor: ir.ExternalTensor, weights: Path) -> NDArray[np.floating]:
    """The numbers of an external tensor, mapped. Raises CheckpointError when its file is too short."""
    import numpy as np

    path = weights / Path(tensor.location).name
    try:
        return np.memmap(path, tensor.dtype.numpy(), "r", tensor.offset or 0, _shape(tensor))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is truncated or was changed: {error}") from error


def _quantized(file: WeightFile, name: str, shape: tuple[int, int], block: int) -> QuantizedMatrix:
    import onnx_ir as ir

    from rtgen.passes.quantize_weights import QuantizedMatrix

    def place(suffix: str, dtype: ir.DataType, columns: int) -> ir.ExternalTensor:
        stored = file.stored(f"{name}.{suffix}")
        return ir.ExternalTensor(
            file.path.name,
            stored.offset,
            stored.length,
            dtype,
            shape=ir.Shape((shape[0], columns)),
            name=f"{name}.{suffix}",
            base_dir=str(file.path.parent),
        )

    codes, scales = place("codes", ir.DataType.INT4, shape[1]), place("scales", ir.DataType.FLOAT16, shape[1] // block)
    return QuantizedMatrix(codes, scales, block)
