"""``rtgen::QuantizedKVCacheAttention`` in standard ONNX operators, in ONNX's text form.

What occurs several times (rotation, codes, bytes) is written by a function of Python each, whose names begin with those
of its result. Rows that take no part are masked here; kernels skip them.
"""

from __future__ import annotations

from typing import Final

_STAGES: Final = 7
"""Of a rotation: heads of 128 numbers at most."""


def _rotation(source: str, result: str) -> str:
    """float32 [.., D] times the normalised Hadamard matrix: butterflies over strides 1, 2, .., D / 2.

    D numbers are a cube whose sides are 2, and 1 for strides that D has not. Along one dimension after the other, the
    last first, both numbers of a pair become their sum and their difference; a side of 1 leaves its number as it is.
    """
    stages = [f"{result}_cube", *(f"{result}_turned_{stage}" for stage in range(_STAGES))]
    butterflies = "".join(
        f"""
    {result}_partner_{stage} = Gather <axis = {_STAGES - stage}> ({stages[stage]}, swap_{stage})
    {result}_counted_{stage} = Mul ({result}_partner_{stage}, is_pair_{stage})
    {result}_signed_{stage} = Mul ({stages[stage]}, sign_{stage})
    {stages[stage + 1]} = Add ({result}_counted_{stage}, {result}_signed_{stage})"""
        for stage in range(_STAGES)
    )
    return f"""
    {result}_shape = Shape ({source})
    {result}_cube = Reshape ({source}, cube_shape){butterflies}
    {result}_scaled = Mul ({stages[-1]}, norm)
    {result} = Reshape ({result}_scaled, {result}_shape)"""


def _sides() -> str:
    """What the stages of all rotations share: the side, the swap of a pair, its signs, and whether it is one."""
    return "".join(
        f"""
    stride_{stage} = Constant <value_ints = [{2**stage}]> ()
    strides_{stage} = Div (dim, stride_{stage})
    at_most_two_{stage} = Min (strides_{stage}, both)
    side_{stage} = Max (at_most_two_{stage}, one_row)
    count_{stage} = Squeeze (side_{stage})
    last_{stage} = Sub (count_{stage}, one_index)
    is_pair_{stage} = Cast <to = 1> (last_{stage})
    swap_{stage} = Range (last_{stage}, minus_one, minus_one)
    order_{stage} = Range (zero_index, count_{stage}, one_index)
    number_{stage} = Cast <to = 1> (order_{stage})
    twice_{stage} = Mul (number_{stage}, two)
    signs_{stage} = Sub (one, twice_{stage})
    sign_shape_{stage} = Constant <value_ints = [-1{", 1" * stage}]> ()
    sign_{stage} = Reshape (signs_{stage}, sign_shape_{stage})"""
        for stage in range(_STAGES)
    )


def _codes(source: str, result: str) -> str:
    """``result``: codes of float32 [.., D] as float32; ``result``_scales: float16 [..]. Not finite: 0 and NaN."""
    return f"""
    {result}_largest = ReduceMax <keepdims = 1> ({source}, last_axis)
    {result}_smallest = ReduceMin <keepdims = 1> ({source}, last_axis)
    {result}_smallest_magnitude = Neg ({result}_smallest)
    {result}_is_positive = Greater ({result}_largest, {result}_smallest_magnitude)
    {result}_extreme = Where ({result}_is_positive, {result}_largest, {result}_smallest)
    {result}_step = Div ({result}_extreme, lowest)
    {result}_step_half = Cast <to = 10> ({result}_step)
    {result}_scale = Cast <to = 1> ({result}_step_half)
    {result}_zeros = Mul ({source}, zero)
    {result}_zero_sum = ReduceSum <keepdims = 1> ({result}_zeros, last_axis)
    {result}_zero_scale = Mul ({result}_scale, zero)
    {result}_zero_or_nan = Add ({result}_zero_sum, {result}_zero_scale)
    {result}_is_bad = IsNaN ({result}_zero_or_nan)
    {result}_is_zero = Equal ({result}_scale, zero)
    {result}_has_none = Or ({result}_is_zero, {result}_is_bad)
    {result}_reciprocal = Div (one, {result}_scale)
    {result}_inverse = Where ({result}_has_none, zero, {result}_reciprocal)
    {result}_steps = Mul ({source}, {result}_inverse)
    {result}_rounded = Round ({result}_steps)
    {result}_clipped = Clip ({result}_rounded, lowest, highest)
    {result} = Where ({result}_is_bad, zero, {result}_clipped)
    {result}_marked = Add ({result}_scale, {result}_zero_or_nan)
    {result}_column = Cast <to = 10> ({result}_marked)
    {result}_scales = Squeeze ({result}_column, last_axis)"""


def _packed(source: str, result: str) -> str:
    """Codes [.., D] float32 as bytes int8: of two 4-bit ones the first in the low half."""
    return f"""
    {result} = If (is_packed) <
        then_branch = {result}_pairs () => ({result}_halved) {{
            {result}_leading = Shape <start = 0, end = -1> ({source})
            {result}_rest = Constant <value_ints = [-1, 2]> ()
            {result}_shape = Concat <axis = 0> ({result}_leading, {result}_rest)
            {result}_pairwise = Reshape ({source}, {result}_shape)
            {result}_first = Constant <value_int = 0> ()
            {result}_second = Constant <value_int = 1> ()
            {result}_low = Gather <axis = -1> ({result}_pairwise, {result}_first)
            {result}_high = Gather <axis = -1> ({result}_pairwise, {result}_second)
            {result}_is_negative = Less ({result}_low, zero)
            {result}_borrow = Where ({result}_is_negative, sixteen, zero)
            {result}_low_part = Add ({result}_low, {result}_borrow)
            {result}_high_part = Mul ({result}_high, sixteen)
            {result}_byte = Add ({result}_low_part, {result}_high_part)
            {result}_halved = Cast <to = 3> ({result}_byte)
        }},
        else_branch = {result}_bytes () => ({result}_whole) {{ {result}_whole = Cast <to = 3> ({source}) }}
    >"""


def _unpacked(source: str, result: str) -> str:
    """The inverse of :func:`_packed`, float32."""
    return f"""
    {result} = If (is_packed) <
        then_branch = {result}_pairs () => ({result}_numbers) {{
            {result}_byte = Cast <to = 1> ({source})
            {result}_sixteenth = Div ({result}_byte, sixteen)
            {result}_high = Floor ({result}_sixteenth)
            {result}_high_part = Mul ({result}_high, sixteen)
            {result}_unsigned = Sub ({result}_byte, {result}_high_part)
            {result}_is_negative = Greater ({result}_unsigned, highest)
            {result}_borrow = Where ({result}_is_negative, sixteen, zero)
            {result}_low = Sub ({result}_unsigned, {result}_borrow)
            {result}_low_column = Unsqueeze ({result}_low, last_axis)
            {result}_high_column = Unsqueeze ({result}_high, last_axis)
            {result}_both = Concat <axis = -1> ({result}_low_column, {result}_high_column)
            {result}_leading = Shape <start = 0, end = -1> ({source})
            {result}_shape = Concat <axis = 0> ({result}_leading, last_axis)
            {result}_numbers = Reshape ({result}_both, {result}_shape)
        }},
        else_branch = {result}_bytes () => ({result}_plain) {{ {result}_plain = Cast <to = 1> ({source}) }}
    >"""


_CONSTANTS = f"""
    zero = Constant <value_float = 0.0> ()
    one = Constant <value_float = 1.0> ()
    two = Constant <value_float = 2.0> ()
    sixteen = Constant <value_float = 16.0> ()
    last_axis = Constant <value_ints = [-1]> ()
    row_axis = Constant <value_ints = [2]> ()
    first_axis = Constant <value_ints = [0]> ()
    zero_index = Constant <value_int = 0> ()
    one_index = Constant <value_int = 1> ()
    minus_one = Constant <value_int = -1> ()
    zero_row = Constant <value_ints = [0]> ()
    one_row = Constant <value_ints = [1]> ()
    both = Constant <value_ints = [2]> ()
    bits = Constant <value_int: int = @bits> ()
    eight_bits = Constant <value_int = 8> ()
    is_packed = Less (bits, eight_bits)
    lowest_of_4 = Constant <value_float = -8.0> ()
    lowest_of_8 = Constant <value_float = -128.0> ()
    lowest = Where (is_packed, lowest_of_4, lowest_of_8)
    magnitude = Neg (lowest)
    highest = Sub (magnitude, one)

    dim = Shape <start = -1> (query)
    {_sides()}
    cube_shape = Concat <axis = 0> (last_axis, {", ".join(f"side_{stage}" for stage in reversed(range(_STAGES)))})
    dim_number = Cast <to = 1> (dim)
    dim_inverse = Div (one, dim_number)
    norm = Sqrt (dim_inverse)"""

_WRITE = f"""
    rows = Shape <start = 2, end = 3> (codes)
    tokens = Shape <start = 2, end = 3> (query)
    chunk_kv = Concat <axis = 0> (key, value)
    kv = Cast <to = 1> (chunk_kv)
    mean = ReduceMean <keepdims = 0> (kv, row_axis)
    mean_half = Cast <to = 10> (mean)
    at_start = Equal (write_index, zero_row)
    alone = Equal (valid_length, tokens)
    is_first = And (at_start, alone)
    mean_rounded = Cast <to = 1> (mean_half)
    centres_before = Cast <to = 1> (centres)
    centres_wide = Where (is_first, mean_rounded, centres_before)
    centres_out = Cast <to = 10> (centres_wide)
    centres_row = Unsqueeze (centres_wide, row_axis)
    centred = Sub (kv, centres_row)
    {_rotation("centred", "rotated")}
    {_codes("rotated", "fresh")}
    {_packed("fresh", "fresh_bytes")}
    length = Squeeze (rows)
    positions = Range (zero_index, length, one_index)
    is_valid = Less (positions, valid_length)
"""

_IN_ORDER: Final = """
    place = Expand (write_index, both)
    codes_same = TensorScatter <axis = 2> (codes, fresh_bytes, place)
    scales_same = TensorScatter <axis = 2> (scales, fresh_scales, place)
    pages_same = Identity (pages)
    live_same = Identity (is_valid)
    bias_same = Mul (one, zero)
"""
"""Without pruning a token's place is its row."""

_TURNS: Final = """
    slots = Constant <value_int: int = @pool> ()
    sink = Constant <value_int: int = @sink> ()
    slots_row = Reshape (slots, one_row)
    capacity = Sub (rows, slots_row)
    chunk_row = Div (tokens, frame_tokens)
    write_row = Div (write_index, frame_tokens)
    chunk = Squeeze (chunk_row)
    write_frame = Squeeze (write_row)
    valid_row = Div (valid_length, frame_tokens)
    frames = Squeeze (valid_row)
    after_write = Add (write_frame, chunk)

    slot = Range (zero_index, slots, one_index)
    is_held = Less (slot, frames)
    before_write = Less (slot, write_frame)
    after_chunk = GreaterOrEqual (slot, after_write)
    is_past = Or (before_write, after_chunk)
    is_own = Not (is_past)
    is_full = Equal (frames, slots)
    oldest = Where (is_full, after_write, sink)
    turning = Sub (slots, sink)
    in_sink = Less (slot, sink)
    from_oldest = Sub (slot, oldest)
    turned = Mod (from_oldest, turning)
    turned_rank = Add (sink, turned)
    rank = Where (in_sink, slot, turned_rank)
    earlier_rank = Sub (rank, one_index)
    earlier_in_sink = Less (earlier_rank, sink)
    oldest_turn = Sub (oldest, sink)
    earlier_turn = Sub (earlier_rank, sink)
    earlier_offset = Add (earlier_turn, oldest_turn)
    earlier_turned = Mod (earlier_offset, turning)
    earlier_slot = Add (sink, earlier_turned)
    earlier_raw = Where (earlier_in_sink, earlier_rank, earlier_slot)
    earlier = Max (earlier_raw, zero_index)

    ring_pages = Div (capacity, frame_tokens)
    page_count_row = Min (ring_pages, slots_row)
    page_count = Squeeze (page_count_row)
    has_page = GreaterOrEqual (pages, zero_index)
    is_page = Less (pages, page_count)
    is_later = Not (is_first)
    page_in_ring = And (has_page, is_page)
    held_before = And (is_held, is_past)
    held_later = And (held_before, is_later)
    is_live = And (held_later, page_in_ring)
"""
"""Frame slots and their ranks in time; which of them hold the tokens of a frame before the chunk."""

_CHOICE: Final = f"""
    fresh_wide = Cast <to = 1> (fresh_scales)
    fresh_factor = Unsqueeze (fresh_wide, last_axis)
    fresh_values = Mul (fresh, fresh_factor)
    fresh_leading = Shape <start = 0, end = 2> (fresh)
    by_frame_shape = Concat <axis = 0> (fresh_leading, chunk_row, frame_tokens, dim)
    by_frame = Reshape (fresh_values, by_frame_shape)
    token_axis = Constant <value_ints = [3]> ()
    frame_means = ReduceMean <keepdims = 0> (by_frame, token_axis)
    {_codes("frame_means", "pooled")}
    {_packed("pooled", "pooled_bytes")}

    pool_codes = Slice (codes, capacity, rows, row_axis)
    pool_scales = Slice (scales, capacity, rows, row_axis)
    {_unpacked("pool_codes", "pool_numbers")}
    pool_scales_wide = Cast <to = 1> (pool_scales)
    pool_scales_held = Where (held_before, pool_scales_wide, zero)
    pool_factor = Unsqueeze (pool_scales_held, last_axis)
    pool_values = Mul (pool_numbers, pool_factor)
    earlier_values = Gather <axis = 2> (pool_values, earlier)
    step = Sub (pool_values, earlier_values)
    kind_head_dim = Constant <value_ints = [0, 1, 3]> ()
    step_power = ReduceSumSquare <keepdims = 0> (step, kind_head_dim)
    power = ReduceSumSquare <keepdims = 0> (pool_values, kind_head_dim)
    earlier_power = Gather <axis = 0> (power, earlier)
    both_power = Add (power, earlier_power)
    has_power = Greater (both_power, zero)
    power_or_one = Where (has_power, both_power, one)
    power_ratio = Div (step_power, power_or_one)
    is_oldest = Equal (rank, zero_index)
    change = Where (is_oldest, one, power_ratio)

    recent = Constant <value_float: float = @recent> ()
    keep = Constant <value_float: float = @keep> ()
    frames_number = Cast <to = 1> (frames)
    recent_share = Mul (recent, frames_number)
    margin = Constant <value_float = 1e-4> ()
    recent_least = Sub (recent_share, margin)
    recent_ceiling = Ceil (recent_least)
    recent_whole = Cast <to = 7> (recent_ceiling)
    newest = Max (recent_whole, chunk)
    sink_held = Min (sink, frames)
    older = Sub (frames, newest)
    old_raw = Sub (older, sink_held)
    old_count = Max (old_raw, zero_index)
    old_end = Add (sink_held, old_count)
    keep_share = Mul (keep, frames_number)
    keep_rounded = Round (keep_share)
    keep_whole = Cast <to = 7> (keep_rounded)
    never_pruned = Sub (frames, old_count)
    keep_raw = Sub (keep_whole, never_pruned)
    keep_floor = Max (keep_raw, zero_index)
    keep_count = Min (keep_floor, old_count)

    before_old = Less (rank, sink_held)
    after_sink = Not (before_old)
    before_newest = Less (rank, old_end)
    is_old = And (after_sink, before_newest)
    old_rank = Sub (rank, sink_held)
    old_rank_number = Cast <to = 1> (old_rank)
    old_or_one = Max (old_count, one_index)
    old_number = Cast <to = 1> (old_or_one)
    recency = Div (old_rank_number, old_number)
    change_weight = Constant <value_float = 0.2> ()
    recency_weight = Constant <value_float = 0.8> ()
    change_part = Mul (change, change_weight)
    recency_part = Mul (recency, recency_weight)
    score = Add (change_part, recency_part)
    score_column = Unsqueeze (score, last_axis)
    rank_column = Unsqueeze (rank, last_axis)
    scores_higher = Greater (score, score_column)
    scores_equal = Equal (score, score_column)
    is_newer = Greater (rank, rank_column)
    wins_tie = And (scores_equal, is_newer)
    is_better = Or (scores_higher, wins_tie)
    can_stay = And (is_old, is_live)
    better_old = And (is_better, can_stay)
    better_number = Cast <to = 7> (better_old)
    better_count = ReduceSum <keepdims = 0> (better_number, last_axis)
    stays = Less (better_count, keep_count)
    is_young = Not (is_old)
    may_stay = Or (stays, is_young)
    is_kept = And (is_live, may_stay)
"""
"""Which of the frames before the chunk stay live, and the pool rows of the chunk's own."""

_PAGES: Final = """
    page = Range (zero_index, page_count, one_index)
    pages_column = Unsqueeze (pages, last_axis)
    kept_column = Unsqueeze (is_kept, last_axis)
    own_column = Unsqueeze (is_own, last_axis)
    is_its_page = Equal (pages_column, page)
    keeps = And (is_its_page, kept_column)
    keeps_number = Cast <to = 7> (keeps)
    keepers = ReduceSum <keepdims = 0> (keeps_number, first_axis)
    is_free = Equal (keepers, zero_index)
    free_number = Cast <to = 7> (is_free)
    free_counted = CumSum (free_number, zero_index)
    free_turn = Sub (free_counted, one_index)
    own_turn = Sub (slot, write_frame)
    own_turn_column = Unsqueeze (own_turn, last_axis)
    is_its_turn = Equal (own_turn_column, free_turn)
    takes_free = And (is_its_turn, is_free)
    takes = And (takes_free, own_column)
    takes_number = Cast <to = 7> (takes)
    takers = ReduceSum <keepdims = 0> (takes_number, first_axis)
    page_after = Add (page, one_index)
    taken_after = Mul (takes_number, page_after)
    own_page_after = ReduceSum <keepdims = 0> (taken_after, last_axis)
    own_page = Sub (own_page_after, one_index)
    kept_page = Where (is_kept, pages, minus_one)
    pages_paged = Where (is_own, own_page, kept_page)

    row_page_any = Div (positions, frame_tokens)
    last_page = Sub (page_count, one_index)
    row_page = Min (row_page_any, last_page)
    page_start = Mul (row_page, frame_tokens)
    row_token = Sub (positions, page_start)
    is_token = Less (row_token, frame_tokens)
    page_own = Greater (takers, zero_index)
    row_own = Gather (page_own, row_page)
    is_own_row = And (row_own, is_token)
    turn_of_page = Mul (free_turn, takers)
    row_turn = Gather (turn_of_page, row_page)
    turn_start = Mul (row_turn, frame_tokens)
    token_source = Add (turn_start, row_token)
    pool_slot_any = Sub (positions, capacity)
    in_pool = GreaterOrEqual (pool_slot_any, zero_index)
    pool_slot = Max (pool_slot_any, zero_index)
    slot_own = Gather (is_own, pool_slot)
    is_own_pool = And (in_pool, slot_own)
    pool_turn = Sub (pool_slot, write_frame)
    pool_source = Add (pool_turn, tokens)
    fresh_source = Where (is_own_pool, pool_source, token_source)
    is_fresh = Or (is_own_row, is_own_pool)
    appended_source = Add (fresh_source, rows)
    source = Where (is_fresh, appended_source, positions)
    all_codes = Concat <axis = 2> (codes, fresh_bytes, pooled_bytes)
    all_scales = Concat <axis = 2> (scales, fresh_scales, pooled_scales)
    codes_pooled = Gather <axis = 2> (all_codes, source)
    scales_pooled = Gather <axis = 2> (all_scales, source)

    page_users = Add (keepers, takers)
    page_live = Greater (page_users, zero_index)
    row_live = Gather (page_live, row_page)
    ring_live = And (row_live, is_token)
    no_page = Less (pages_paged, zero_index)
    is_pruned = And (no_page, is_held)
    slot_pruned = Gather (is_pruned, pool_slot)
    pool_live = And (in_pool, slot_pruned)
    live_pooled = Or (ring_live, pool_live)
    frame_number = Cast <to = 1> (frame_tokens)
    frame_bias = Log (frame_number)
    bias_pooled = Where (in_pool, frame_bias, zero)
"""
"""Pages of the live frames, the lowest free ones for the chunk's; rows written there and in the pool; what is seen."""

_ATTEND = f"""
    live = Identity (live_rows)
    scales_wide = Cast <to = 1> (scales_out)
    scales_live = Where (live, scales_wide, zero)
    scales_column = Unsqueeze (scales_live, last_axis)
    {_unpacked("codes_out", "numbers")}
    key_numbers_row = Slice (numbers, zero_row, one_row, first_axis)
    value_numbers_row = Slice (numbers, one_row, both, first_axis)
    key_scales = Slice (scales_live, zero_row, one_row, first_axis)
    value_scales = Slice (scales_column, one_row, both, first_axis)
    values_wide = Mul (value_numbers_row, value_scales)
    values_half = Cast <to = 10> (values_wide)
    values = Cast <to = 1> (values_half)

    query_wide = Cast <to = 1> (query)
    {_rotation("query_wide", "query_rotated")}
    query_magnitudes = Abs (query_rotated)
    query_amax = ReduceMax <keepdims = 1> (query_magnitudes, last_axis)
    query_zeros = Mul (query_rotated, zero)
    query_zero_or_nan = ReduceSum <keepdims = 1> (query_zeros, last_axis)
    query_is_bad = IsNaN (query_zero_or_nan)
    query_is_zero = Equal (query_amax, zero)
    query_has_none = Or (query_is_zero, query_is_bad)
    most = Constant <value_float = 127.0> ()
    query_reciprocal = Div (most, query_amax)
    query_inverse = Where (query_has_none, zero, query_reciprocal)
    query_steps = Mul (query_rotated, query_inverse)
    query_rounded = Round (query_steps)
    query_codes = Where (query_is_bad, zero, query_rounded)
    query_step = Div (query_amax, most)
    query_scale = Add (query_step, query_zero_or_nan)
    query_factor = Mul (query_scale, norm)

    key_operand = Transpose <perm = [0, 1, 3, 2]> (key_numbers_row)
    integers = MatMul (query_codes, key_operand)
    key_factor = Unsqueeze (key_scales, row_axis)
    key_scaled = Mul (integers, key_factor)
    logits = Mul (key_scaled, query_factor)
    minus_infinity = Log (zero)
    live_bias = Where (live, row_bias, minus_infinity)
    biased = Add (logits, live_bias)
    weights = Softmax <axis = -1> (biased)
    mixed = MatMul (weights, values)
    {_rotation("mixed", "restored")}
    value_centre = Slice (centres_row, one_row, both, first_axis)
    centred_output = Add (restored, value_centre)
    output = CastLike (centred_output, query)
"""

BODY: Final = f"""
<domain: "rtgen", opset_import: ["" : 24]>
QuantizedKVCacheAttention
    <bits: int = 4, pool: int = 0, sink: int = 0, keep: float = 1.0, recent: float = 0.25, head_dim: int = 128>
    (query, key, value, codes, scales, centres, pages, write_index, valid_length, frame_tokens)
    => (output, codes_out, scales_out, centres_out, pages_out)
{{{_CONSTANTS}
{_WRITE}
    keep_all = Constant <value_float: float = @keep> ()
    prunes = Less (keep_all, one)
    codes_out, scales_out, pages_out, live_rows, row_bias = If (prunes) <
        then_branch = pruned () => (codes_pooled, scales_pooled, pages_paged, live_pooled, bias_pooled) {{
{_TURNS}{_CHOICE}{_PAGES}
        }},
        else_branch = unpruned () => (codes_same, scales_same, pages_same, live_same, bias_same) {{{_IN_ORDER}
        }}
    >
{_ATTEND}
}}
"""
"""The function body: keys and values are dequantized and rows are masked, so it needs the memory of a float ring."""
