"""``rtgen::W4A4Linear``: a linear layer with 4-bit weights, 4-bit activations and a low-rank branch in float16.

Shapes: x [..., K] float16; codes [N, K / 2] int8, two weights a byte, the first in the low half; scales [N, K / 64]
float16; pre_scale and shift [K] float16; low_rank_down [R, K] and low_rank_up [N, R] float16; bias [N] float16. The
output is [..., N] float16. K is a multiple of 64. Attribute ``rotate`` (0 or 1): the input is rotated by a Hadamard
matrix before it is quantized, and the codes are those of a weight that was rotated too. Attribute ``epilogue`` (0 or
1): the output goes through GELU (with tanh).

``rtgen::W4A4LinearGated`` ends in residual + gate * y instead, with two inputs more, in float32 as the output is: gate
[B, F, N], one row for each T / F tokens, and residual [B, T, N]. x is [B, T, K].

The arithmetic, which every implementation shares (f32 and f16 are roundings; a group is 64 numbers of one token)::

    v       = f32(x * pre_scale - shift)                     the product is exact: two float16 make a float32
    r       = butterflies(v) / 8 with rotate, else v         see :func:`rotate_groups` for the order
    extreme = the number of the group with the largest magnitude; the negative one of two
    scale   = f16(extreme / -8)                              may be negative
    code_x  = round_half_even(f32(r * f32(-8 / extreme)))    clipped to -8 .. 7; all 0 where extreme is 0
    sum     = integer sum of code_x * code_w over a group    exact in any order; at most 64 * 8 * 8
    acc     = f32(acc + f32(f32(sum * scale_w) * scale))     groups in ascending order; sum * scale_w is exact
    hidden  = f16(f16(v) @ low_rank_down^T)                  float32 sums
    y       = acc + hidden @ low_rank_up^T + bias            float32 sums
    output  = f16(y), f16(gelu(y)), or residual + gate * y

Scales and codes are bits that no implementation may change; so are the integer sums. The float32 sums of the last
three lines may take another order or fuse a multiplication with an addition. A group that holds a NaN or an infinity
has the codes 0 and the scale NaN, which makes all outputs of its token NaN. v must stay within float16 for the branch.

The scale takes the sign that gives the extreme the code -8: 16 codes are used, and steps are 8/7 finer than with the
codes -7 .. 7. Groups and the branch follow SVDQuant (Li et al., 2024, arXiv:2411.05007), the rotation QuaRot (Ashkboos
et al., 2024, arXiv:2404.00456), the shift Outlier Suppression+ (Wei et al., 2023, arXiv:2304.09145).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from rtgen.plugins import w4a4_linear_body
from rtgen.plugins.base import Output, Plugin
from rtgen.plugins.torch_launch import launch_on_torch
from rtgen.plugins.w4a4_linear_kernel import GELU, GROUP, NONE, W4A4LinearKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rtgen.data_types import DataType

LOWEST: Final = -8
HIGHEST: Final = 7
"""The ends of INT4."""

_INPUTS = ("x", "codes", "scales", "pre_scale", "shift", "low_rank_down", "low_rank_up", "bias")
_HALVES: tuple[DataType, ...] = ("float16",) * 6
_TYPES: tuple[DataType, ...] = ("float16", "int8", *_HALVES)
_SHAPE = ((0, 0), (0, 1), (1, 0))

PLUGIN = Plugin(
    name="W4A4Linear",
    inputs=_INPUTS,
    outputs=("output",),
    attributes={"rotate": 0, "epilogue": 0},
    body=w4a4_linear_body.LINEAR,
    kernel=W4A4LinearKernel(),
    results=(Output(0, _SHAPE),),
    input_types=_TYPES,
)

GATED = Plugin(
    name="W4A4LinearGated",
    inputs=(*_INPUTS, "gate", "residual"),
    outputs=("output",),
    attributes={"rotate": 0},
    body=w4a4_linear_body.GATED,
    kernel=W4A4LinearKernel(gated=True),
    results=(Output(9, _SHAPE),),
    input_types=(*_TYPES, "float32", "float32"),
)


def rotate_groups(values: Tensor) -> Tensor:
    """Each group of 64 numbers in float32 [..., K] times the normalised Hadamard matrix (Sylvester's order).

    Six rounds of sums and differences over strides 1, 2, 4, 8, 16, 32, each rounded to float32, then a division by
    8, which is exact. The order is part of the operator: another would round otherwise, and codes could differ.
    """
    import torch

    turned = values.reshape(-1, GROUP)
    for _ in range(6):
        even, odd = turned[:, 0::2], turned[:, 1::2]
        turned = torch.cat([even + odd, even - odd], dim=1)
    return (turned * 0.125).reshape(values.shape)


def quantize_groups(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., K / 64, 64] and scales [..., K / 64, 1] of float32 values [..., K], both as float32.

    A group that is not finite has the codes 0 and the scale NaN.
    """
    import torch

    groups = values.reshape(*values.shape[:-1], -1, GROUP)
    largest, smallest = groups.amax(dim=-1, keepdim=True), groups.amin(dim=-1, keepdim=True)
    extreme = torch.where(largest > -smallest, largest, smallest)
    finite = largest.isfinite() & smallest.isfinite()
    lowest = torch.full_like(extreme, LOWEST)
    # A division, not "LOWEST / extreme": torch takes the reciprocal first there, and rounds twice.
    inverse = torch.where((extreme != 0) & finite, torch.div(lowest, extreme), 0.0)
    codes = torch.where(finite, (groups * inverse).round().clamp(LOWEST, HIGHEST), 0.0)
    return codes, torch.where(finite, torch.div(extreme, lowest).half().float(), torch.nan)


def unpack_codes(codes: Tensor) -> Tensor:
    """Integers [N, K] from -8 to 7, as int8, of packed codes [N, K / 2] int8."""
    import torch

    low = (codes << 4) >> 4  # shifts of int8 keep the sign
    return torch.stack([low, codes >> 4], dim=-1).flatten(1)


def linear_sums(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    pre_scale: Tensor,
    shift: Tensor,
    low_rank_down: Tensor,
    low_rank_up: Tensor,
    bias: Tensor,
    rotate: int,
) -> Tensor:
    """The reference on any device: y of the module's docstring in float32, [..., N]."""
    smooth = x.float() * pre_scale.float() - shift.float()
    x_codes, x_scales = quantize_groups(rotate_groups(smooth) if rotate else smooth)
    w_codes = unpack_codes(codes).float().reshape(len(codes), -1, GROUP)
    total = smooth.new_zeros((*x.shape[:-1], codes.shape[0]))
    for group in range(scales.shape[1]):
        # Integers up to 4096 in float32: exact, also where torch may use TF32.
        sums = x_codes[..., group, :] @ w_codes[:, group].T
        total += sums * scales[:, group].float() * x_scales[..., group, :]
    hidden = (smooth.half().float() @ low_rank_down.float().T).half()
    return total + hidden.float() @ low_rank_up.float().T + bias.float()


def finish_linear(y: Tensor, epilogue: int) -> Tensor:
    """The reference of W4A4Linear's end: float16 of y, or of its GELU."""
    from torch.nn import functional as F

    return (F.gelu(y, approximate="tanh") if epilogue == GELU else y).half()


def finish_gated(y: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    """The reference of W4A4LinearGated's end: residual + gate * y; y and residual [B, T, N], gate [B, F, N] float32."""
    frames = y.reshape(*gate.shape[:2], -1, gate.shape[2])
    return residual + (frames * gate.unsqueeze(2)).reshape(residual.shape)


@cache
def torch_op() -> Callable[..., Tensor]:
    """W4A4Linear as ``torch.ops.rtgen.w4a4_linear``: the reference on the processor, the kernel on CUDA GPUs."""
    import torch

    tensors = ", ".join(f"Tensor {name}" for name in PLUGIN.inputs)
    schema = f"({tensors}, int rotate=0, int epilogue=0, Tensor? constants=None) -> Tensor"

    @torch.library.custom_op("rtgen::w4a4_linear", mutates_args=(), schema=schema)
    def w4a4_linear(
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        pre_scale: Tensor,
        shift: Tensor,
        low_rank_down: Tensor,
        low_rank_up: Tensor,
        bias: Tensor,
        rotate: int = 0,
        epilogue: int = 0,
        constants: Tensor | None = None,
    ) -> Tensor:
        tensors = (x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias)
        _check(*tensors, rotate)
        if epilogue not in (NONE, GELU):
            raise ValueError(f"epilogue is {NONE} or {GELU}, not {epilogue}")
        if x.is_cuda:
            output = x.new_empty((*x.shape[:-1], codes.shape[0]))
            plugin = with_constants(PLUGIN, constants)
            launch_on_torch(plugin, _packed(tensors), (output,), {"rotate": rotate, "epilogue": epilogue})
            return output
        return finish_linear(linear_sums(*tensors, rotate), epilogue)

    @w4a4_linear.register_fake
    def _(x: Any, codes: Any, *rest: Any, rotate: int = 0, epilogue: int = 0, constants: Any = None) -> Any:
        return x.new_empty((*x.shape[:-1], codes.shape[0]))

    return w4a4_linear


@cache
def gated_torch_op() -> Callable[..., Tensor]:
    """W4A4LinearGated as ``torch.ops.rtgen.w4a4_linear_gated``."""
    import torch

    tensors = ", ".join(f"Tensor {name}" for name in GATED.inputs)
    schema = f"({tensors}, int rotate=0, Tensor? constants=None) -> Tensor"

    @torch.library.custom_op("rtgen::w4a4_linear_gated", mutates_args=(), schema=schema)
    def w4a4_linear_gated(
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        pre_scale: Tensor,
        shift: Tensor,
        low_rank_down: Tensor,
        low_rank_up: Tensor,
        bias: Tensor,
        gate: Tensor,
        residual: Tensor,
        rotate: int = 0,
        constants: Tensor | None = None,
    ) -> Tensor:
        tensors = (x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias)
        _check(*tensors, rotate)
        _check_gated(x, codes, gate, residual)
        if x.is_cuda:
            output = torch.empty_like(residual, memory_format=torch.contiguous_format)
            launch_on_torch(
                with_constants(GATED, constants), _packed((*tensors, gate, residual)), (output,), {"rotate": rotate}
            )
            return output
        return finish_gated(linear_sums(*tensors, rotate), gate, residual)

    @w4a4_linear_gated.register_fake
    def _(x: Any, codes: Any, *rest: Any, rotate: int = 0, constants: Any = None) -> Any:
        residual = rest[7]
        return residual.new_empty(residual.shape)

    return w4a4_linear_gated


def prepared_constants(tensors: Sequence[Tensor]) -> Tensor | None:
    """What the torch ops take as ``constants``, for a layer that is called often: its weights, their scales and
    ``low_rank_up`` in the form of the kernels, uint8 [bytes]. ``tensors`` are the operator's inputs from ``codes`` to
    ``bias``. None where no form of their own is needed: on the processor, and on all GPUs but Hopper.
    """
    import torch

    from rtgen.plugins.loader import current_kernels
    from rtgen.plugins.torch_launch import views

    codes, scales, pre_scale, shift, down, up, bias = tensors
    x = scales.new_empty((1, 0, 2 * codes.shape[1]))
    _check(x, codes, scales, pre_scale, shift, down, up, bias, 0)
    if not codes.is_cuda:
        return None
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    kernel, packed = W4A4LinearKernel(), _packed((x, *tensors))
    size = kernel.constants_bytes([tuple(tensor.shape) for tensor in packed], capability)
    if not size:
        return None
    constants = torch.empty(size, dtype=torch.uint8, device=codes.device)
    kernels = current_kernels(kernel.sources({}, capability))
    kernel.prepare(kernels, torch.cuda.current_stream().cuda_stream, views(packed), constants.data_ptr())
    return constants


def with_constants(plugin: Plugin, constants: Tensor | None) -> Plugin:
    """The plugin with a kernel that finds a layer's constants prepared."""
    if constants is None:
        return plugin
    assert isinstance(plugin.kernel, W4A4LinearKernel)
    return replace(plugin, kernel=replace(plugin.kernel, constants=constants.data_ptr()))


def _packed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous, and where a kernel may read 16 bytes at once."""
    packed = [tensor.contiguous() for tensor in tensors]
    return [tensor.clone() if tensor.data_ptr() % 16 else tensor for tensor in packed]


def _check(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    pre_scale: Tensor,
    shift: Tensor,
    down: Tensor,
    up: Tensor,
    bias: Tensor,
    rotate: int,
) -> None:
    """Raise ValueError unless types and shapes are those of the operator."""
    import torch

    width, height, rank = x.shape[-1], codes.shape[0], down.shape[0]
    if width % GROUP:
        raise ValueError(f"an input of {width} numbers has no whole groups of {GROUP}")
    if rotate not in (0, 1):
        raise ValueError(f"rotate is 0 or 1, not {rotate}")
    wanted = {
        "x": (x, torch.float16, x.shape),
        "codes": (codes, torch.int8, (height, width // 2)),
        "scales": (scales, torch.float16, (height, width // GROUP)),
        "pre_scale": (pre_scale, torch.float16, (width,)),
        "shift": (shift, torch.float16, (width,)),
        "low_rank_down": (down, torch.float16, (rank, width)),
        "low_rank_up": (up, torch.float16, (height, rank)),
        "bias": (bias, torch.float16, (height,)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)}, not {dtype}{list(shape)}")


def _check_gated(x: Tensor, codes: Tensor, gate: Tensor, residual: Tensor) -> None:
    """As :func:`_check`, of the inputs that W4A4LinearGated has besides."""
    import torch

    if x.ndim != 3 or gate.ndim != 3 or x.shape[1] % max(1, gate.shape[1]):
        raise ValueError(f"gate {list(gate.shape)} does not share out the tokens of x {list(x.shape)}")
    wanted = {
        "gate": (gate, (x.shape[0], gate.shape[1], codes.shape[0])),
        "residual": (residual, (*x.shape[:-1], codes.shape[0])),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)}, not torch.float32{list(shape)}")
