"""``rtgen::KVCacheAttention``: write a chunk's keys and values into the ring, then attend to everything valid in it.

Shapes: query, key, value [1, heads, T, head_dim]; key_cache, value_cache [1, heads, S, head_dim]; write_index [1]
int64: the first ring position written; valid_length [1] int64: positions below it hold keys. The outputs are the
attention [1, heads, T, head_dim] and both caches, which a backend updates in place.

The ring (sink and window) is the host's affair (``rtgen.runtime.kv_cache``): slots fill in order, so the valid part is
always a prefix, and since keys carry their rotary position the order inside the ring does not matter.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from rtgen.plugins.base import Plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PLUGIN = Plugin(
    name="KVCacheAttention",
    inputs=("query", "key", "value", "key_cache", "value_cache", "write_index", "valid_length"),
    outputs=("output", "key_cache_out", "value_cache_out"),
    # TensorScatter is what ONNX Runtime and TensorRT both execute in place. The mask is expanded to [1, 1, T, S]
    # because ONNX Runtime's Attention does not broadcast its query dimension.
    body="""
<domain: "rtgen", opset_import: ["" : 24]>
KVCacheAttention (query, key, value, key_cache, value_cache, write_index, valid_length)
    => (output, key_cache_out, value_cache_out)
{
    key_cache_out = TensorScatter <axis = 2> (key_cache, key, write_index)
    value_cache_out = TensorScatter <axis = 2> (value_cache, value, write_index)
    size = Shape <start = 2, end = 3> (key_cache)
    length = Squeeze (size)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    positions = Range (zero, length, one)
    reachable = Less (positions, valid_length)
    leading_axes = Constant <value_ints = [0, 1, 2]> ()
    row = Unsqueeze (reachable, leading_axes)
    single = Constant <value_ints = [1]> ()
    queries = Shape <start = 2, end = 3> (query)
    mask_shape = Concat <axis = 0> (single, single, queries, size)
    mask = Expand (row, mask_shape)
    output = Attention (query, key_cache_out, value_cache_out, mask)
}
""",
)


@cache
def torch_op() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The operator as ``torch.ops.rtgen.kv_cache_attention``; functional: the caches come back as new tensors."""
    import torch
    from torch.nn import functional as F

    tensors = ", ".join(f"Tensor {name}" for name in PLUGIN.inputs)

    @torch.library.custom_op(
        "rtgen::kv_cache_attention", mutates_args=(), schema=f"({tensors}) -> (Tensor, Tensor, Tensor)"
    )
    def kv_cache_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        write_index: Tensor,
        valid_length: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        start, end = int(write_index), int(write_index) + key.shape[2]
        if end > key_cache.shape[2] or int(valid_length) < end:
            raise ValueError(f"the chunk [{start}, {end}) does not fit the ring or its valid length")
        keys, values = key_cache.clone(), value_cache.clone()
        keys[:, :, start:end], values[:, :, start:end] = key, value
        valid = slice(0, int(valid_length))
        return F.scaled_dot_product_attention(query, keys[:, :, valid], values[:, :, valid]), keys, values

    @kv_cache_attention.register_fake
    def _(
        query: Any, key: Any, value: Any, key_cache: Any, value_cache: Any, write_index: Any, valid_length: Any
    ) -> Any:
        return torch.empty_like(query), torch.empty_like(key_cache), torch.empty_like(value_cache)

    return kv_cache_attention
