"""The ONNX function bodies of ``rtgen::W4A4Linear`` and ``rtgen::W4A4LinearGated``: what any ONNX runtime executes."""

from __future__ import annotations

from typing import Final

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

# Products of integers are taken in float16, which TensorRT has on every GPU it serves (Turing has no float32
# ones), and over 32 numbers at most: up to 32 * 8 * 8 = 2048 float16 represents every integer, whatever
# the accumulator. DequantizeLinear with the scale 1 is what keeps TensorRT from unpacking the codes ahead of time.
_LINEAR = f"""
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
    half_step = Cast <to = 10> (step)
    rounded_step = Cast <to = 1> (half_step)
    scale = Add (rounded_step, zero_or_nan)
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
"""
"""From the inputs to ``with_bias``, float32 [.., T, N]."""

_INPUTS = "x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias"

LINEAR: Final = f"""
<domain: "rtgen", opset_import: ["" : 24]>
W4A4Linear <rotate: int = 0, epilogue: int = 0> ({_INPUTS}) => (output)
{{{_LINEAR}
    epilogue_flag = Constant <value_int: int = @epilogue> ()
    is_gelu = Cast <to = 9> (epilogue_flag)
    finished = If (is_gelu) <
        then_branch = activated () => (curved) {{ curved = Gelu <approximate = "tanh"> (with_bias) }},
        else_branch = linear () => (straight) {{ straight = Identity (with_bias) }}
    >
    output = Cast <to = 10> (finished)
}}
"""

GATED: Final = f"""
<domain: "rtgen", opset_import: ["" : 24]>
W4A4LinearGated <rotate: int = 0> ({_INPUTS}, gate, residual) => (output)
{{{_LINEAR}
    frames = Shape <start = 0, end = -1> (gate)
    row = Shape <start = -1> (gate)
    frame_shape = Concat <axis = 0> (frames, rest, row)
    framed = Reshape (with_bias, frame_shape)
    before_last = Constant <value_ints = [-2]> ()
    gate_rows = Unsqueeze (gate, before_last)
    gated = Mul (framed, gate_rows)
    residual_shape = Shape (residual)
    gated_tokens = Reshape (gated, residual_shape)
    output = Add (residual, gated_tokens)
}}
"""
