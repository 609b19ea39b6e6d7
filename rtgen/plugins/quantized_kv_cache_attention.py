"""``rtgen::QuantizedKVCacheAttention``: attention of a chunk over a K/V ring of packed 4-bit or 8-bit codes.

Shapes, with D = 64 or 128 in the kernels and any power of two up to 128 in the body and the reference: query, key,
value [1, heads, T, D] float16; keys carry their rotary position. codes [2, heads, R, D * bits / 8] int8, keys and then
values; R = S + P rows are those of S tokens and then P pool rows. scales [2, heads, R] float16, which may be negative.
centres [2, heads, D] float16. pages [max(P, 1)] int64: where the tokens of each frame lie. write_index, valid_length
and frame_tokens (tokens of a latent frame) are [1] int64. Outputs: the attention, like the query, and the four states,
which a backend updates in place.

Attributes: ``bits`` (4 or 8); ``pool`` (P: 0, or the window in latent frames); ``sink`` (latent frames); ``keep``
(below 1, old frames are replaced by their pool rows until about this share is left, and the ring has memory for so many
only: :func:`rtgen.config.kv_cache.most_live`); ``recent`` (the share of the newest frames that is never replaced);
``head_dim`` (D, since kernels are compiled for it).

The arithmetic is in docs/plugins/kv_cache_attention.md. The ring (sink and window) is the host's affair, as with
:mod:`rtgen.plugins.kv_cache_attention`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from rtgen.plugins.base import Attributes, Output, Plugin
from rtgen.plugins.quantized_kv_cache_attention_body import BODY
from rtgen.plugins.quantized_kv_cache_attention_kernel import RingAttentionKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

HEAD_DIMS: Final = (64, 128)
"""Widths of a head that there are kernels for. The reference takes any power of two up to the last."""
MOST_POOL_ROWS: Final = 32
"""Of pooled frames, which a mask of 32 bits chooses from."""

PLUGIN = Plugin(
    name="QuantizedKVCacheAttention",
    inputs=(
        "query", "key", "value", "codes", "scales", "centres", "pages", "write_index", "valid_length", "frame_tokens",
    ),
    outputs=("output", "codes_out", "scales_out", "centres_out", "pages_out"),
    body=BODY,
    attributes={"bits": 4, "pool": 0, "sink": 0, "keep": 1.0, "recent": 0.25, "head_dim": 128},
    kernel=RingAttentionKernel(),
    results=(
        Output(type_of=0, shape=((0, 0), (0, 1), (0, 2), (0, 3))),
        Output(type_of=3, shape=((3, 0), (3, 1), (3, 2), (3, 3)), alias=3),
        Output(type_of=4, shape=((4, 0), (4, 1), (4, 2)), alias=4),
        Output(type_of=5, shape=((5, 0), (5, 1), (5, 2)), alias=5),
        Output(type_of=6, shape=((6, 0),), alias=6),
    ),
    input_types=(
        "float16", "float16", "float16", "int8", "float16", "float16", "int64", "int64", "int64", "int64",
    ),
)  # fmt: skip


@cache
def torch_op() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """The operator as ``torch.ops.rtgen.quantized_kv_cache_attention``; functional: states come back as new tensors.

    On a CUDA GPU it runs the kernels, elsewhere the reference, which takes float32 besides float16.
    """
    import torch

    tensors = ", ".join(f"Tensor {name}" for name in PLUGIN.inputs)

    @torch.library.custom_op(
        "rtgen::quantized_kv_cache_attention",
        mutates_args=(),
        schema=f"({tensors}, int bits=4, int pool=0, int sink=0, float keep=1.0, float recent=0.25)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    def quantized_kv_cache_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        codes: Tensor,
        scales: Tensor,
        centres: Tensor,
        pages: Tensor,
        write_index: Tensor,
        valid_length: Tensor,
        frame_tokens: Tensor,
        bits: int = 4,
        pool: int = 0,
        sink: int = 0,
        keep: float = 1.0,
        recent: float = 0.25,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        states = codes.clone(), scales.clone(), centres.clone(), pages.clone()
        output = attend_in_place(
            query, key, value, *states, write_index, valid_length, frame_tokens,
            bits=bits, pool=pool, sink=sink, keep=keep, recent=recent,
        )  # fmt: skip
        return output, *states

    @quantized_kv_cache_attention.register_fake
    def _(
        query: Any,
        key: Any,
        value: Any,
        codes: Any,
        scales: Any,
        centres: Any,
        pages: Any,
        *rest: Any,
        **attributes: Any,
    ) -> Any:
        return torch.empty_like(query), *(torch.empty_like(state) for state in (codes, scales, centres, pages))

    return quantized_kv_cache_attention


def attend_in_place(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    codes: Tensor,
    scales: Tensor,
    centres: Tensor,
    pages: Tensor,
    write_index: Tensor,
    valid_length: Tensor,
    frame_tokens: Tensor,
    *,
    bits: int = 4,
    pool: int = 0,
    sink: int = 0,
    keep: float = 1.0,
    recent: float = 0.25,
) -> Tensor:
    """The operator with its states updated in place; returns the attention. See the module for shapes.

    On a CUDA GPU nothing is read back to the host, so that the call can be captured in a CUDA graph. Raises ValueError
    for shapes and types that are not the operator's and, on the processor, for a chunk that does not fit the ring.
    """
    tensors = (query, key, value, codes, scales, centres, pages, write_index, valid_length, frame_tokens)
    attributes: Attributes = {
        "bits": bits, "pool": pool, "sink": sink, "keep": keep, "recent": recent, "head_dim": query.shape[-1],
    }  # fmt: skip
    _check(tensors, attributes)
    if query.is_cuda:
        return _launch(tensors, attributes)
    return _refer(tensors, attributes)


def _refer(tensors: Sequence[Tensor], attributes: Attributes) -> Tensor:
    from rtgen.plugins import quantized_kv_cache_attention_reference as reference

    query, key, value, codes, scales, centres, pages, *numbers = tensors
    write_index, valid_length, frame_tokens = (int(number) for number in numbers)
    progress = reference.Progress(write_index, valid_length, frame_tokens, query.shape[2])
    prune = reference.Prune(
        int(attributes["pool"]), int(attributes["sink"]), float(attributes["keep"]), float(attributes["recent"])
    )
    start, end = progress.write_index, progress.write_index + progress.tokens
    length = codes.shape[2] - prune.window if prune.keep >= 1 else prune.window * progress.frame_tokens
    if start < 0 or end > length or not end <= progress.valid_length <= length:
        raise ValueError(f"the chunk [{start}, {end}) does not fit the ring or its valid length")
    if prune.is_active and any(number % progress.frame_tokens for number in (start, end, progress.valid_length)):
        raise ValueError(f"the chunk [{start}, {end}) has no whole frames of {progress.frame_tokens} tokens")
    states = codes, scales, centres, pages
    return reference.attend(query, key, value, *states, progress, int(attributes["bits"]), prune)


def _launch(tensors: Sequence[Tensor], attributes: Attributes) -> Tensor:
    import torch

    from rtgen.plugins.torch_launch import launch_on_torch

    output = torch.empty_like(tensors[0])
    launch_on_torch(PLUGIN, tensors, (output, *tensors[3:7]), attributes)
    return output


def _check(tensors: Sequence[Tensor], attributes: Attributes) -> None:
    """Raise ValueError unless types, shapes and attributes are those of the operator."""
    import torch

    query, codes = tensors[0], tensors[3]
    bits, pool, sink, keep = (attributes[name] for name in ("bits", "pool", "sink", "keep"))
    widths = HEAD_DIMS if query.is_cuda else [2**power for power in range(1, HEAD_DIMS[-1].bit_length())]
    if query.ndim != 4 or query.shape[0] != 1 or query.shape[3] not in widths:
        raise ValueError(f"the query is {list(query.shape)}, not [1, heads, T, {' or '.join(map(str, widths))}]")
    if bits not in (4, 8):
        raise ValueError(f"codes have 4 or 8 bits, not {bits}")
    if not 0 <= pool <= MOST_POOL_ROWS or (keep < 1 and not 0 <= sink < pool):
        raise ValueError(f"a sink of {sink} frames and a pool of {pool} rows (at most {MOST_POOL_ROWS}) do not prune")
    if codes.ndim != 4 or codes.shape[2] <= pool:
        raise ValueError(f"codes {list(codes.shape)} leave no ring before {pool} pool rows")
    _, heads, tokens, dim = query.shape
    rows, wide = codes.shape[2], torch.float16 if query.is_cuda else query.dtype
    chunk, one = (wide, (1, heads, tokens, dim)), (torch.int64, (1,))
    wanted = (
        chunk, chunk, chunk,
        (torch.int8, (2, heads, rows, dim * bits // 8)), (torch.float16, (2, heads, rows)),
        (torch.float16, (2, heads, dim)), (torch.int64, (max(int(pool), 1),)), one, one, one,
    )  # fmt: skip
    for name, tensor, (dtype, shape) in zip(PLUGIN.inputs, tensors, wanted, strict=True):
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)}, not {dtype}{list(shape)}")
