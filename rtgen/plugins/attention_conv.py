"""``rtgen::AttentionConv``: single-head attention over the places of an image, a 1x1 convolution and the residual.

Shapes: qkv [S * F, N, 3 * C], the queries, keys and values of each place beside each other; weight [O, C] and bias [O]
of the convolution; residual and output [S, O, F, H, W] with H * W = N. S streams of F frames; each frame attends to
itself. All tensors have one type; the kernel takes float16.

    output = residual + (softmax(scale * q k^T) v weight^T + bias), channels first

Attribute ``scale``: 0 stands for 1 / sqrt(C). Attribute ``channels``: C, which the kernel is compiled for; the function
body does not need it.

The layout is what graphs have at hand. The 1x1 convolution before the attention is a matrix product over places, and
leaves q, k and v of a place beside each other: taking them apart would copy them. What is around the block has its
channels first, so the kernel writes that, and reads the residual in it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from rtgen.plugins.attention_conv_kernel import AttentionConvKernel, scale_of
from rtgen.plugins.base import Output, Plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PLUGIN = Plugin(
    name="AttentionConv",
    inputs=("qkv", "weight", "bias", "residual"),
    outputs=("output",),
    attributes={"channels": 0, "scale": 0.0},
    # Attention is written out because TensorRT has no fused kernel for most of these widths. Queries are scaled before
    # the product, which could overflow float16 otherwise.
    body="""
<domain: "rtgen", opset_import: ["" : 24]>
AttentionConv <channels: int = 0, scale: float = 0.0> (qkv, weight, bias, residual) => (output)
{
    given = Constant <value_float: float = @scale> ()
    zero = Constant <value_float = 0.0> ()
    is_default = Equal (given, zero)
    width = Shape <start = 1, end = 2> (weight)
    width_float = Cast <to = 1> (width)
    root = Sqrt (width_float)
    usual = Reciprocal (root)
    chosen = Where (is_default, usual, given)
    factor = CastLike (chosen, qkv)

    query, key, value = Split <axis = 2, num_outputs = 3> (qkv)
    scaled = Mul (query, factor)
    turned = Transpose <perm = [0, 2, 1]> (key)
    scores = MatMul (scaled, turned)
    shares = Softmax <axis = -1> (scores)
    attended = MatMul (shares, value)

    matrix = Transpose <perm = [1, 0]> (weight)
    product = MatMul (attended, matrix)
    projected = Add (product, bias)
    streams = Shape <start = 0, end = 1> (residual)
    out_channels = Shape <start = 1, end = 2> (residual)
    rest = Constant <value_ints = [-1]> ()
    place_shape = Concat <axis = 0> (streams, rest, out_channels)
    places = Reshape (projected, place_shape)
    channels_first = Transpose <perm = [0, 2, 1]> (places)
    shape = Shape (residual)
    image = Reshape (channels_first, shape)
    output = Add (residual, image)
}
""",
    kernel=AttentionConvKernel(),
    results=(Output(type_of=3, shape=tuple((3, axis) for axis in range(5))),),
    input_types=("float16",) * 4,
)


@cache
def torch_op() -> Callable[..., Tensor]:
    """The operator as ``torch.ops.rtgen.attention_conv``: the kernel on CUDA, else the reference in float32."""
    import torch
    from torch.nn import functional as F

    tensors = ", ".join(f"Tensor {name}" for name in PLUGIN.inputs)

    @torch.library.custom_op("rtgen::attention_conv", mutates_args=(), schema=f"({tensors}, float scale=0.0) -> Tensor")
    def attention_conv(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: float = 0.0) -> Tensor:
        _check(qkv, weight, bias, residual)
        attributes = {"channels": weight.shape[1], "scale": scale}
        if qkv.is_cuda:
            return _launch(qkv, weight, bias, residual, attributes)
        query, key, value = qkv.float().unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value, scale=scale_of(attributes, weight.shape[1]))
        projected = F.linear(attended.squeeze(1), weight.float(), bias.float())
        image = projected.reshape(residual.shape[0], -1, weight.shape[0]).transpose(1, 2).reshape(residual.shape)
        return (residual.float() + image).to(qkv.dtype)

    @attention_conv.register_fake
    def _(qkv: Any, weight: Any, bias: Any, residual: Any, scale: float = 0.0) -> Any:
        return torch.empty_like(residual, memory_format=torch.contiguous_format)

    return attention_conv


def _launch(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, attributes: dict[str, int | float]) -> Tensor:
    import torch

    from rtgen.plugins.torch_launch import launch_on_torch

    if qkv.dtype != torch.float16:
        raise ValueError(f"the kernel takes float16, not {qkv.dtype}")
    inputs = [tensor.contiguous() for tensor in (qkv, weight, bias, residual)]
    output = torch.empty_like(inputs[3])
    launch_on_torch(PLUGIN, inputs, [output], attributes)
    return output


def _check(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> None:
    """Raise ValueError unless shapes and types are those of the operator."""
    out_channels, channels = weight.shape
    images, tokens, width = qkv.shape
    if residual.dim() != 5 or residual.shape[1] != out_channels or bias.shape != (out_channels,):
        raise ValueError(
            f"bias {list(bias.shape)} and residual {list(residual.shape)} do not fit {out_channels} output channels"
        )
    streams, _, frames, height, columns = residual.shape
    if width != 3 * channels or (images, tokens) != (streams * frames, height * columns):
        wanted = [streams * frames, height * columns, 3 * channels]
        raise ValueError(f"qkv is {list(qkv.shape)}, and residual and weight ask for {wanted}")
    if len({tensor.dtype for tensor in (qkv, weight, bias, residual)}) > 1:
        raise ValueError(f"one type is needed, not {qkv.dtype}, {weight.dtype}, {bias.dtype}, {residual.dtype}")
