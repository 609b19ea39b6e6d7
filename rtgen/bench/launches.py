"""What a plugin launches, learned from its launch plan without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rtgen.plugins.base import Attributes, KernelSource, Plugin, TensorView

if TYPE_CHECKING:
    from rtgen.data_types import DataType
    from rtgen.plugins.loader import Argument, LoadedKernels

_FIRST_ADDRESS = 1 << 32
_STEP = 1 << 36


@dataclass(frozen=True)
class Tensor:
    """Type and shape of an input or output."""

    dtype: DataType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """One kernel of a plugin's call."""

    source: KernelSource
    entry: str
    blocks: int
    threads: int
    """Of a block."""
    shared: int
    """Dynamic shared memory of a block, in bytes."""


class Recorder:
    """Stands in for :class:`rtgen.plugins.loader.LoadedKernels` on a GPU that is not there."""

    def __init__(self, compute_capability: str, multiprocessors: int) -> None:
        self.compute_capability, self.multiprocessors = compute_capability, multiprocessors
        self.launches: list[Launch] = []

    def launch(
        self,
        stream: int,
        source: KernelSource,
        entry: str,
        grid: tuple[int, ...],
        block: int,
        *arguments: Argument,
        shared: int = 0,
        overlap: bool = False,
    ) -> None:
        blocks = 1
        for size in grid:
            blocks *= size
        self.launches.append(Launch(source, entry, blocks, block, shared))


def launches(
    plugin: Plugin,
    inputs: Sequence[Tensor],
    attributes: Attributes,
    compute_capability: str,
    multiprocessors: int,
) -> list[Launch]:
    """The kernels that one call of the plugin enqueues, in order."""
    assert plugin.kernel is not None
    recorder = Recorder(compute_capability, multiprocessors)
    given = [_view(number, tensor) for number, tensor in enumerate(inputs)]
    made = [
        given[result.alias] if result.alias is not None else _view(len(inputs) + number, output(inputs, plugin, number))
        for number, result in enumerate(plugin.results)
    ]
    scratch = _FIRST_ADDRESS + (len(given) + len(made)) * _STEP
    kernels = cast("LoadedKernels", recorder)
    plugin.kernel.launch(kernels, 0, given, made, scratch, {**plugin.attributes, **attributes})
    return recorder.launches


def output(inputs: Sequence[Tensor], plugin: Plugin, number: int) -> Tensor:
    """What a plugin's output is for these inputs."""
    result = plugin.results[number]
    return Tensor(inputs[result.type_of].dtype, tuple(inputs[index].shape[axis] for index, axis in result.shape))


def in_order(plugin: Plugin, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The inputs as the plugin counts them."""
    return [tensors[name] for name in plugin.inputs]


def _view(number: int, tensor: Tensor) -> TensorView:
    return TensorView(_FIRST_ADDRESS + number * _STEP, tensor.shape, tensor.dtype)
