"""The components' modules with their weights on the device, from the files of a package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor, nn

from rtgen.errors import PackageInvalidError
from rtgen.models.registry import check_names, create
from rtgen.models.safetensors_index import StoredTensor, read_index
from rtgen.torch_backend.fp8_linear import Fp8Linear, check_fp8
from rtgen.torch_backend.w4a4_module import W4A4Module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rtgen.config.recipe import Precision
    from rtgen.engine.manifest import Component
    from rtgen.quantize.result import LayerResult
    from rtgen.torch_backend.description import Description

DTYPES: Final[Mapping[Precision, torch.dtype]] = {"float16": torch.float16, "float32": torch.float32}
_SUFFIX: Final = ".weight"
_GROUP: Final = 64
Shape = tuple[int, ...]
_Maker: TypeAlias = "Callable[[LayerResult, Mapping[str, Tensor], Tensor | None, torch.dtype], nn.Module]"


def load_module(
    component: Component, description: Description, files: Sequence[Path], device: torch.device
) -> nn.Module:
    """A component in the description's precision, its weights on ``device``; nothing is copied twice.

    Raises PackageInvalidError for layers that it cannot compute, CheckpointError unless the files hold exactly the
    component's tensors.
    """
    layers = {layer.name: layer for layer in description.layers} if component == "denoiser" else {}
    module = _outline(component, description)
    wanted = {name: tuple(value.shape) for name, value in module.named_parameters()}
    _check_layers(layers, wanted)
    index = _index(files, codes=bool(layers))
    kept = {name: shape for name, shape in wanted.items() if name not in layers}
    stored = {name: parts_of(layer, wanted[name]) for name, layer in layers.items()}
    check_names(component, kept | {part: shape for parts in stored.values() for part, shape in parts.items()}, index)
    dtype = DTYPES[description.precision]
    values: dict[str, Tensor] = {}
    for name, tensor in _tensors(files):
        # Codes and scales stay as they are stored.
        values[name] = tensor.to(device, dtype) if name in kept else tensor.to(device, copy=True)
    for name, layer in layers.items():
        parts = {part.removeprefix(f"{name}."): values.pop(part) for part in stored[name]}
        bias = values.pop(f"{name.removesuffix(_SUFFIX)}.bias", None)
        _replace(module, name.removesuffix(_SUFFIX), _KINDS[_kind(layer)](layer, parts, bias, dtype))
    module.load_state_dict(values, strict=False, assign=True)
    return module.eval().requires_grad_(False)


def map_module(component: Component, description: Description, files: Sequence[Path]) -> nn.Module:
    """A component whose weights stay in their files, as they are stored. Raises CheckpointError."""
    module = _outline(component, description)
    index = _index(files, codes=False)
    check_names(component, {name: tuple(value.shape) for name, value in module.named_parameters()}, index)
    module.load_state_dict(dict(_tensors(files)), strict=False, assign=True)
    return module.eval().requires_grad_(False)


def parts_of(layer: LayerResult, shape: Shape) -> dict[str, Shape]:
    """The stored tensors of a quantized matrix [out, in] and their shapes. Raises PackageInvalidError."""
    rows, columns = shape
    if _kind(layer) == ("fp8", "fp8"):
        check_fp8(layer, (rows, columns))
        parts: dict[str, Shape] = {"codes": (rows, columns), "scales": (), "input_scale": ()}
    else:
        if columns % _GROUP or layer.block != _GROUP:
            raise PackageInvalidError(f"{layer.name} is {list(shape)}, not in groups of {_GROUP}")
        halves: dict[str, Shape] = {"codes": (rows, columns // 2), "scales": (rows, columns // _GROUP)}
        parts = halves | {"pre_scale": (columns,), "shift": (columns,), "bias": (rows,)}
        if layer.rank:
            parts |= {"low_rank_down": (layer.rank, columns), "low_rank_up": (rows, layer.rank)}
    return {f"{layer.name}.{suffix}": part for suffix, part in parts.items()}


def _kind(layer: LayerResult) -> tuple[str, str | None]:
    return layer.weights, layer.activations


def _fp8(layer: LayerResult, parts: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    return Fp8Linear(parts, None if bias is None else bias.to(dtype), dtype)


def _w4a4(layer: LayerResult, parts: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    return W4A4Module(parts, layer.rotated, dtype)  # with a bias of its own


_KINDS: Final[Mapping[tuple[str, str | None], _Maker]] = {("fp8", "fp8"): _fp8, ("int4", "int4"): _w4a4}
"""What computes a layer, by the formats of its weights and activations."""


def _check_layers(layers: Mapping[str, LayerResult], wanted: Mapping[str, Shape]) -> None:
    for name, layer in layers.items():
        if len(wanted.get(name, ())) != 2 or not name.endswith(_SUFFIX):
            raise PackageInvalidError(f"{name!r} is no matrix of the denoiser")
        if _kind(layer) not in _KINDS:
            weights, activations = _kind(layer)
            raise PackageInvalidError(f"{name}: the torch backend has no {weights} weights with {activations} inputs")


def _outline(component: Component, description: Description) -> nn.Module:
    with torch.device("meta"):
        return create(component, description.model)


def _index(files: Sequence[Path], *, codes: bool) -> dict[str, StoredTensor]:
    index: dict[str, StoredTensor] = {}
    for file in files:
        found = read_index(file, codes=codes)
        if index.keys() & found.keys():
            raise PackageInvalidError(f"{file.name} holds {min(index.keys() & found.keys())!r} once more")
        index |= found
    return index


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor as it is stored, mapped from its file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in files:
        try:
            yield from load_file(file).items()
        except SafetensorError as error:  # stricter than the index: it refuses gaps, for one
            raise PackageInvalidError(f"{file.name} is not a sound safetensors file: {error}") from error


def _replace(module: nn.Module, name: str, other: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, other)
