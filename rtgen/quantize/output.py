"""A quantized component's files: every tensor in one safetensors file, and ``quantization.json``.

What is quantized waits in small files until it is known which layers stay as they are, so that memory holds one layer
at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.models.checkpoints.lazy import FileTensor
from rtgen.quantize.result import QuantizationResult, write_result
from rtgen.quantize.weight_file import PlannedTensor, WeightFile

if TYPE_CHECKING:
    from torch import Tensor

    from rtgen.models.safetensors_index import StoredTensor

COMPONENT: Final = "denoiser"
"""The component that recipes quantize: nearly all of the weights that a GPU keeps, and of the work."""

WEIGHTS: Final = f"{COMPONENT}.quantized.safetensors"


class LayerFiles:
    """Quantized layers on their way into the weight file, in a temporary ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._planned: dict[str, list[PlannedTensor]] = {}

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of layer ``name``, by suffix. Raises OSError."""
        from safetensors.torch import save_file

        on_host = {suffix: tensor.detach().cpu().contiguous() for suffix, tensor in tensors.items()}
        save_file(on_host, self._file(name))
        self._planned[name] = [
            PlannedTensor(f"{name}.{suffix}", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for suffix, tensor in on_host.items()
        ]

    def write(self, folder: Path, result: QuantizationResult, stored: Mapping[str, StoredTensor]) -> None:
        """Write the component's files: layers as ``result`` says, and all other tensors of the checkpoint as they are.

        Raises CheckpointError for a checkpoint that was changed meanwhile, OSError.
        """
        from safetensors.torch import load_file

        quantized = [layer.name for layer in result.layers if layer.weights != "float"]
        kept = {name: tensor for name, tensor in stored.items() if name not in quantized}
        planned = [PlannedTensor(name, tensor.dtype, tensor.shape) for name, tensor in kept.items()]
        file = WeightFile(folder / WEIGHTS, [*planned, *(table for name in quantized for table in self._planned[name])])
        with file.create() as stream:
            for name, tensor in kept.items():
                file.write(stream, name, _bytes(read_stored(tensor)))
            for name in quantized:
                for suffix, value in load_file(self._file(name)).items():
                    file.write(stream, f"{name}.{suffix}", _bytes(value))
        write_result(result, folder)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def read_stored(tensor: StoredTensor) -> Tensor:
    """A tensor of a checkpoint as it is stored. Raises CheckpointError when its file is too short."""
    return FileTensor(tensor.file, tensor.offset, tensor.dtype, tensor.shape).load()


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
