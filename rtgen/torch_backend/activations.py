"""How much memory the intermediate results of an execution take, found on torch's meta device, which computes none."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rtgen.engine.manifest import Component, resolve_shape
from rtgen.models.registry import create
from rtgen.torch_backend.modules import DTYPES
from rtgen.torch_backend.programs import DenoiserProgram, Program, TextEncoderProgram, program_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtgen.engine.manifest import ComponentEntry
    from rtgen.models.dit import Attend
    from rtgen.torch_backend.description import Description


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators made and that are still in use: ``now``, and at most ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for tensor in filter(_is_tensor, tree_leaves(result)):
            self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._known or key in given:  # a view, or an operation in place
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


class _PassWithoutAttention(DenoiserProgram):
    """A pass whose attention to the ring makes its result and nothing else, as fused kernels do."""

    def _ring(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], tokens: int) -> Attend:
        return lambda layer, query, key, value: torch.empty_like(query)


def peak_activations(
    component: Component, entry: ComponentEntry, description: Description, sizes: Mapping[str, int]
) -> int:
    """Bytes of intermediate results of one execution at ``sizes``, but for what kernels take besides; 0 on the host.

    Quantized layers count as those of the precision. Attention to the prompt is counted with its scores, which fused
    kernels do not store.
    """
    if entry.runs_on == "host":
        return 0
    meta = torch.device("meta")
    with meta, torch.inference_mode():
        module = create(component, description.model).to(DTYPES[description.precision]).eval()
        tensors = {
            tensor.name: torch.empty(resolve_shape(tensor.shape, sizes), dtype=getattr(torch, tensor.dtype))
            for tensor in (*entry.inputs, *entry.outputs)
        }
        program = _program(component, module, entry, description)
        with LiveBytes() as live:
            program(tensors, {})
    return live.peak


def _program(component: Component, module: Any, entry: ComponentEntry, description: Description) -> Program:
    if component == "text_encoder":
        return TextEncoderProgram(module)
    if component == "denoiser":
        return _PassWithoutAttention(module, entry, None)
    return program_of(module, entry, description, torch.device("meta"))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
