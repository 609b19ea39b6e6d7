"""What plugins are reckoned at: the shapes of Wan 2.1 1.3B at 480x832, with the operations and bytes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from rtgen.bench.launches import Tensor
from rtgen.config.kv_cache import most_live
from rtgen.data_types import ITEM_SIZES

if TYPE_CHECKING:
    from rtgen.estimate.efficiencies import NumberType

_TOKENS: Final = 4680
"""Of a chunk: three latent frames of 30 x 52."""
_FRAME: Final = 1560


@dataclass(frozen=True)
class Case:
    """One call of a plugin."""

    name: str
    inputs: Mapping[str, Tensor]
    attributes: Mapping[str, int | float]
    operations: Mapping[NumberType, float]
    """Multiplications and additions of the products, by what they are computed in."""
    bytes: float
    """Read and written at least once."""


def cases(plugin: str) -> tuple[Case, ...]:
    """Those of a plugin by its name; none for one that is not listed."""
    make = _CASES.get(plugin)
    return () if make is None else tuple(make())


def _size(*tensors: Tensor) -> int:
    return sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in tensors)


def _half(*shape: int) -> Tensor:
    return Tensor("float16", shape)


def _w4a4() -> Iterator[Case]:
    """The three shapes of a block's linear layers; the wide one ends in GELU."""
    for columns, rows, ending in ((1536, 1536, 0), (1536, 8960, 1), (8960, 1536, 0)):
        yield _linear(columns, rows, {"rotate": 1, "epilogue": ending}, ", GELU" if ending else "", {})


def _w4a4_gated() -> Iterator[Case]:
    """Those whose result is gated and added to the residual."""
    for columns in (1536, 8960):
        ending = {"gate": Tensor("float32", (1, 3, 1536)), "residual": Tensor("float32", (1, _TOKENS, 1536))}
        yield _linear(columns, 1536, {"rotate": 1}, ", gate and residual", ending)


def _linear(
    columns: int, rows: int, attributes: Mapping[str, int], ending: str, more: Mapping[str, Tensor], rank: int = 32
) -> Case:
    inputs = {
        "x": _half(1, _TOKENS, columns),
        "codes": Tensor("int8", (rows, columns // 2)),
        "scales": _half(rows, columns // 64),
        "pre_scale": _half(columns),
        "shift": _half(columns),
        "low_rank_down": _half(rank, columns),
        "low_rank_up": _half(rows, rank),
        "bias": _half(rows),
        **more,
    }
    return Case(
        f"{_TOKENS} tokens, {columns} to {rows}{ending}",
        inputs,
        attributes,
        {"int4": 2.0 * _TOKENS * columns * rows, "fp16": 2.0 * _TOKENS * rank * (columns + rows)},
        _size(*inputs.values(), more.get("residual", _half(1, _TOKENS, rows))),
    )


def _ring_attention() -> Iterator[Case]:
    """Twelve heads of 128 over a ring of 21 latent frames, full and with half of it pruned."""
    heads, width, frames = 12, 128, 21
    for bits, keep in ((4, 1.0), (8, 1.0), (4, 0.5)):
        pool, live = 0 if keep == 1 else frames, most_live(frames, 0, 3, keep, 0.25)
        rows = live * _FRAME + pool
        chunk = _half(1, heads, _TOKENS, width)
        number = Tensor("int64", (1,))
        states = {
            "codes": Tensor("int8", (2, heads, rows, width * bits // 8)),
            "scales": _half(2, heads, rows),
            "centres": _half(2, heads, width),
            "pages": Tensor("int64", (max(pool, 1),)),
        }
        inputs = {
            "query": chunk, "key": chunk, "value": chunk, **states,
            "write_index": number, "valid_length": number, "frame_tokens": number,
        }  # fmt: skip
        product = 2.0 * heads * _TOKENS * (live * _FRAME + pool) * width
        yield Case(
            f"{_TOKENS} queries, {frames * _FRAME} keys of {bits} bits" + (f", {keep:.0%} kept" if keep < 1 else ""),
            inputs,
            {"bits": bits, "pool": pool, "sink": 0, "keep": keep, "recent": 0.25, "head_dim": width},
            {"int8": product, "fp16": product},
            4 * _size(chunk) + _size(*states.values()),
        )


def _attention_conv() -> Iterator[Case]:
    """The mid block of the decoder: one head, a latent frame and the three of a chunk."""
    channels, rows, columns = 384, 60, 104
    tokens = rows * columns
    for frames in (1, 3):
        inputs = {
            "qkv": _half(frames, tokens, 3 * channels),
            "weight": _half(channels, channels),
            "bias": _half(channels),
            "residual": _half(1, channels, frames, rows, columns),
        }
        yield Case(
            f"{frames} x {tokens} tokens, {channels} channels",
            inputs,
            {"channels": channels},
            {"fp16": frames * (4.0 * tokens**2 * channels + 2.0 * tokens * channels**2)},
            _size(*inputs.values(), inputs["residual"]),
        )


_CASES: Final[Mapping[str, Callable[[], Iterator[Case]]]] = {
    "W4A4Linear": _w4a4,
    "W4A4LinearGated": _w4a4_gated,
    "AttentionConv": _attention_conv,
    "QuantizedKVCacheAttention": _ring_attention,
}
