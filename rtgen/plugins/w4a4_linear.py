"""``rtgen::W4A4Linear``: a linear layer with 4-bit weights, 4-bit activations and a low-rank branch in float16.

Shapes: x [..., K] float16; codes [N, K / 2] int8, two weights a byte, the first in the low half; scales [N, K / 64]
float16; pre_scale and shift [K] float16; low_rank_down [R, K] and low_rank_up [N, R] float16; bias [N] float16. The
output is [..., N] float16. K is a multiple of 64. Attribute ``rotate`` (0 or 1): the input is rotated by a Hadamard
matrix before it is quantized, and the codes are those of a weight that was rotated too.

The arithmetic, which every implementation shares (f32 and f16 are roundings; a group is 64 numbers of one token)::

    v       = f32(x * pre_scale - shift)                     the product is exact: two float16 make a float32
    r       = butterflies(v) / 8 with rotate, else v         see :func:`rotate_groups` for the order
    extreme = the number of the group with the largest magnitude; the negative one of two
    scale   = extreme / -8                                   exact; may be negative
    code_x  = round_half_even(f32(r * f32(-8 / extreme)))    clipped to -8 .. 7; all 0 where extreme is 0
    sum     = integer sum of code_x * code_w over a group    exact in any order; at most 64 * 8 * 8
    acc     = f32(acc + f32(f32(sum * scale_w) * scale))     groups in ascending order; sum * scale_w is exact
    hidden  = f16(f16(v) @ low_rank_down^T)                  float32 sums
    y       = f16(acc + hidden @ low_rank_up^T + bias)       float32 sums

Scales and codes are bits that no implementation may change; so are the integer sums. The float32 sums of the last
three lines may take another order or fuse a multiplication with an addition. A group that holds a NaN or an infinity
has the codes 0 and the scale NaN, which makes all outputs of its token NaN. v must stay within float16 for the branch.

The scale takes the sign that gives the extreme the code -8: 16 codes are used, and steps are 8/7 finer than with the
codes -7 .. 7. Groups and the branch follow SVDQuant (Li et al., 2024, arXiv:2411.05007), the rotation QuaRot (Ashkboos
et al., 2024, arXiv:2404.00456), the shift Outlier Suppression+ (Wei et al., 2023, arXiv:2304.09145).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from rtgen.plugins.base import Plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

GROUP: Final = 64
"""Numbers of a token, and of a row of the weight, that share a scale; also the size of the rotation."""

LOWEST: Final = -8
HIGHEST: Final = 7
"""The ends of INT4."""

_BUTTERFLIES = "".join(
    f"""
            sign_{stage} = Constant <value: tensor = float[2{", 1" * stage}] {{1, -1}}> ()
            partner_{stage} = Gather <axis = {6 - stage}> ({"cube" if stage == 0 else f"turned_{stage - 1}"}, swap)
            signed_{stage} = Mul ({"cube" if stage == 0 else f"turned_{stage - 1}"}, sign_{stage})
            turned_{stage} = Add (partner_{stage}, signed_{stage})"""
    for stage in range(6)
)
"""A group is a cube of six dimensions of 2. Along one after the other, the last first, both numbers of a pair become
their sum and their difference. TensorRT makes several times as much code of Split and Concat."""

PLUGIN = Plugin(
    name="W4A4Linear",
    inputs=("x", "codes", "scales", "pre_scale", "shift", "low_rank_down", "low_rank_up", "bias"),
    outputs=("output",),
    attributes={"rotate": 0},
    # Products of integers are taken in float16, which TensorRT has on every GPU it serves (Turing has no float32
    # ones), and over 32 numbers at most: up to 32 * 8 * 8 = 2048 float16 represents every integer, whatever
    # the accumulator. DequantizeLinear with the scale 1 is what keeps TensorRT from unpacking the codes ahead of time.
    body=f"""
<domain: "rtgen", opset_import: ["" : 24]>
W4A4Linear <rotate: int = 0> (x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias)
    => (output)
{{
    wide = Cast <to = 1> (x)
    factors = Cast <to = 1> (pre_scale)
    offsets = Cast <to = 1> (shift)
    scaled = Mul (wide, factors)
    smooth = Sub (scaled, offsets)
    rotate_flag = Constant <value_int: int = @rotate> ()
    is_rotated = Cast <to = 9> (rotate_flag)
    values = If (is_rotated) <
        then_branch = rotated () => (turned) {{
            cube_shape = Constant <value_ints = [-1, 2, 2, 2, 2, 2, 2]> ()
            cube = Reshape (smooth, cube_shape)
            swap = Constant <value_ints = [1, 0]> (){_BUTTERFLIES}
            eighth = Constant <value_float = 0.125> ()
            turned = Mul (turned_5, eighth)
        }},
        else_branch = plain () => (kept) {{ kept = Identity (smooth) }}
    >

    one_axis = Constant <value_ints = [1]> ()
    last_axis = Constant <value_ints = [2]> ()
    rest = Constant <value_ints = [-1]> ()
    group_count = Shape <start = 1, end = 2> (scales)
    group_size = Constant <value_ints = [64]> ()
    group_shape = Concat <axis = 0> (rest, group_count, group_size)
    grouped = Reshape (values, group_shape)
    largest = ReduceMax <keepdims = 1> (grouped, last_axis)
    smallest = ReduceMin <keepdims = 1> (grouped, last_axis)
    smallest_magnitude = Neg (smallest)
    is_positive = Greater (largest, smallest_magnitude)
    extreme = Where (is_positive, largest, smallest)
    zero = Constant <value_float = 0.0> ()
    seven = Constant <value_float = 7.0> ()
    minus_eight = Constant <value_float = -8.0> ()
    step = Div (extreme, minus_eight)
    group_sum = ReduceSum <keepdims = 1> (grouped, last_axis)
    zero_or_nan = Sub (group_sum, group_sum)
    scale = Add (step, zero_or_nan)
    unguarded = Div (minus_eight, extreme)
    is_zero = Equal (extreme, zero)
    inverse = Where (is_zero, zero, unguarded)
    steps = Mul (grouped, inverse)
    rounded = Round (steps)
    x_codes = Clip (rounded, minus_eight, seven)

    one = Constant <value_float = 1.0> ()
    sixteen = Constant <value_float = 16.0> ()
    sixteenth = Constant <value_float = 0.0625> ()
    eighth_of = Constant <value_float = 0.125> ()
    byte = DequantizeLinear (codes, one)
    byte_sixteenth = Mul (byte, sixteenth)
    high = Floor (byte_sixteenth)
    high_part = Mul (high, sixteen)
    low_unsigned = Sub (byte, high_part)
    low_eighth = Mul (low_unsigned, eighth_of)
    is_negative = Floor (low_eighth)
    borrow = Mul (is_negative, sixteen)
    low = Sub (low_unsigned, borrow)
    low_column = Unsqueeze (low, last_axis)
    high_column = Unsqueeze (high, last_axis)
    w_codes = Concat <axis = 2> (low_column, high_column)

    halves = Constant <value_ints = [2, 32]> ()
    half_shape = Concat <axis = 0> (rest, group_count, halves)
    x_half = Cast <to = 10> (x_codes)
    w_half = Cast <to = 10> (w_codes)
    x_split = Reshape (x_half, half_shape)
    w_split = Reshape (w_half, half_shape)
    x_operand = Transpose <perm = [1, 2, 0, 3]> (x_split)
    w_operand = Transpose <perm = [1, 2, 3, 0]> (w_split)
    half_sums = MatMul (x_operand, w_operand)
    half_integers = Cast <to = 1> (half_sums)
    integers = ReduceSum <keepdims = 0> (half_integers, one_axis)
    w_scales = Cast <to = 1> (scales)
    w_scales_turned = Transpose <perm = [1, 0]> (w_scales)
    w_scales_rows = Unsqueeze (w_scales_turned, one_axis)
    x_scales = Transpose <perm = [1, 0, 2]> (scale)
    w_scaled = Mul (integers, w_scales_rows)
    terms = Mul (w_scaled, x_scales)
    first_axis = Constant <value_ints = [0]> ()
    total_flat = ReduceSum <keepdims = 0> (terms, first_axis)
    leading = Shape <start = 0, end = -1> (x)
    out_features = Shape <start = 0, end = 1> (scales)
    output_shape = Concat <axis = 0> (leading, out_features)
    total = Reshape (total_flat, output_shape)

    smooth_half = Cast <to = 10> (smooth)
    down = Transpose <perm = [1, 0]> (low_rank_down)
    hidden = MatMul (smooth_half, down)
    up = Transpose <perm = [1, 0]> (low_rank_up)
    branch_half = MatMul (hidden, up)
    branch = Cast <to = 1> (branch_half)
    wide_bias = Cast <to = 1> (bias)
    with_branch = Add (total, branch)
    with_bias = Add (with_branch, wide_bias)
    output = Cast <to = 10> (with_bias)
}}
""",
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
    return codes, torch.where(finite, torch.div(extreme, lowest), torch.nan)


def unpack_codes(codes: Tensor) -> Tensor:
    """Integers [N, K] from -8 to 7, as int8, of packed codes [N, K / 2] int8."""
    import torch

    low = (codes << 4) >> 4  # shifts of int8 keep the sign
    return torch.stack([low, codes >> 4], dim=-1).flatten(1)


@cache
def torch_op() -> Callable[..., Tensor]:
    """The operator as ``torch.ops.rtgen.w4a4_linear``: the reference."""
    import torch

    tensors = ", ".join(f"Tensor {name}" for name in PLUGIN.inputs)

    @torch.library.custom_op("rtgen::w4a4_linear", mutates_args=(), schema=f"({tensors}, int rotate=0) -> Tensor")
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
    ) -> Tensor:
        _check(x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias, rotate)
        smooth = x.float() * pre_scale.float() - shift.float()
        x_codes, x_scales = quantize_groups(rotate_groups(smooth) if rotate else smooth)
        w_codes = unpack_codes(codes).float().reshape(len(codes), -1, GROUP)
        total = x.new_zeros((*x.shape[:-1], codes.shape[0]), dtype=torch.float32)
        for group in range(scales.shape[1]):
            # Integers up to 4096 in float32: exact, also where torch may use TF32.
            sums = x_codes[..., group, :] @ w_codes[:, group].T
            total += sums * scales[:, group].float() * x_scales[..., group, :]
        hidden = (smooth.half().float() @ low_rank_down.float().T).half()
        return (total + hidden.float() @ low_rank_up.float().T + bias.float()).half()

    @w4a4_linear.register_fake
    def _(x: Any, codes: Any, *rest: Any, rotate: int = 0) -> Any:
        return x.new_empty((*x.shape[:-1], codes.shape[0]))

    return w4a4_linear


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
