"""QuantizedKVCacheAttention: body and torch op agree over whole streams, and what the operator promises holds."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.plugins import quantized_kv_cache_attention_reference as reference  # noqa: E402
from rtgen.plugins.quantized_kv_cache_attention import PLUGIN, attend_in_place, torch_op  # noqa: E402
from rtgen.runtime.kv_cache import RingLayout  # noqa: E402
from tests.plugins.ring_streams import Ring, noise  # noqa: E402


@cache
def session_of(attributes):
    """ONNX Runtime on a model with one node, which has nothing but the function body to run it by."""
    chunk, states = "float16[1,H,T,D]", ("int8[2,H,R,B]", "float16[2,H,R]", "float16[2,H,D]", "int64[F]")
    inputs = [f"{chunk} query", f"{chunk} key", f"{chunk} value"]
    inputs += [f"{kind} {name}" for kind, name in zip(states, PLUGIN.inputs[3:7], strict=True)]
    inputs += [f"int64[1] {name}" for name in PLUGIN.inputs[7:]]
    outputs = [f"{kind} {name}" for kind, name in zip((chunk, *states), PLUGIN.outputs, strict=True)]
    given = ", ".join(f"{name} = {value}" for name, value in attributes)
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]>
        net ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
            {", ".join(PLUGIN.outputs)} = rtgen.QuantizedKVCacheAttention <{given}> ({", ".join(PLUGIN.inputs)})
        }}"""
    )
    model.functions.append(PLUGIN.function())
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_body(ring, chunk, numbers):
    given = [*chunk, *ring.states, *numbers]
    session = session_of(tuple(ring.attributes.items()))
    feeds = {name: tensor.numpy() for name, tensor in zip(PLUGIN.inputs, given, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, feeds)]


@st.composite
def rings(draw):
    chunk, bits = draw(st.integers(1, 3)), draw(st.sampled_from([4, 8]))
    sink = draw(st.integers(0, 1)) * chunk
    window = sink + chunk * draw(st.integers(1, 4))
    prune = (
        {"keep": draw(st.sampled_from([0.25, 0.5, 0.75])), "pool": window, "sink": sink} if draw(st.booleans()) else {}
    )
    return Ring(
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([8, 32, 64, 128])),
        frame_tokens=draw(st.integers(1, 5)),
        layout=RingLayout(window, sink, chunk),
        attributes={"bits": bits, "recent": draw(st.sampled_from([0.0, 0.25, 0.5])), **prune},
        generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32))),
    )


@settings(deadline=None, max_examples=25)
@given(ring=rings(), chunks=st.integers(1, 9))
def test_body_and_torch_op_agree_over_a_stream_that_wraps_and_starts_again(ring, chunks):
    ring.poison()
    for index in [*range(chunks), 0, 1][: chunks + 1 + (ring.layout.window > ring.layout.chunk)]:
        chunk, numbers = ring.chunk(), ring.numbers(index)
        body = run_body(ring, chunk, numbers)
        output = ring.attend(chunk, index)
        # The mean that makes a centre may differ in its last bit, and then codes at a tie by one step.
        assert (body[3].float() - ring.centres.float()).abs().max() <= 2e-3
        same_centre = torch.equal(body[3], ring.centres)
        if ring.prune().is_active:
            assert torch.equal(body[4], ring.pages)
            pool = range(len(ring) - ring.layout.window, len(ring) - ring.layout.window + ring.layout.length(index))
            assert not same_centre or torch.equal(body[2][:, :, pool].isnan(), ring.scales[:, :, pool].isnan())
        written = ring.written(index)
        if same_centre:
            assert torch.equal(body[1][:, :, written], ring.codes[:, :, written])
            assert torch.equal(body[2][:, :, written], ring.scales[:, :, written])
        assert output.dtype == torch.float16 and output.isfinite().all()
        if same_centre:
            torch.testing.assert_close(body[0], output, atol=4e-3, rtol=4e-3)
        ring.states = body[1:]


@settings(deadline=None, max_examples=20)
@given(ring=rings(), chunks=st.integers(1, 6))
def test_the_order_of_slots_does_not_matter(ring, chunks):
    ring.attributes = {"bits": ring.attributes["bits"]}
    ring.reset()
    for index in range(chunks):
        ring.attend(ring.chunk(), index)
    query, valid = noise(ring.generator, 1, ring.heads, 4, ring.head_dim), ring.valid(chunks - 1)
    bits, order = ring.attributes["bits"], torch.randperm(ring.valid(chunks - 1), generator=ring.generator)
    states, flat = ring.states[:3], torch.zeros(valid)
    found = reference.attend_rows(query, *states, torch.arange(valid), flat, bits)
    torch.testing.assert_close(reference.attend_rows(query, *states, order, flat, bits), found, atol=2e-3, rtol=2e-3)


@settings(deadline=None, max_examples=20)
@given(ring=rings(), chunks=st.integers(1, 4))
def test_an_offset_that_all_keys_and_values_share_costs_nothing(ring, chunks):
    """The softmax does not see that of the keys; that of the values reaches the output; neither takes codes."""
    ring.attributes = {"bits": 4}
    ring.reset()
    shifted = ring.twin()
    offsets = (noise(ring.generator, 2, 1, ring.heads, 1, ring.head_dim) * 8 * 16).round() / 16
    errors = torch.zeros(2)
    for index in range(chunks):
        query, *past = ring.chunk()
        key, value = ((tensor * 16).round() / 16 for tensor in past)  # so that float16 holds their sums with offsets
        exact = ring.exact(ring.remember((query, key, value), index))
        moved = (query, key + offsets[0], value + offsets[1])
        found = ring.attend((query, key, value), index), shifted.attend(moved, index) - offsets[1]
        errors += torch.tensor([float((output.float() - exact).norm() / exact.norm()) for output in found])
    assert errors[1] <= 1.2 * errors[0] + 0.02 * chunks


@pytest.mark.parametrize("bits", [4, 8])
def test_attention_over_codes_is_near_that_over_floats(bits):
    ring = Ring(4, 64, 16, RingLayout(12, 3, 3), {"bits": bits}, torch.Generator().manual_seed(1))
    for index in range(9):
        chunk = ring.chunk()
        exact = ring.exact(ring.remember(chunk, index))
        found = ring.attend(chunk, index).float()
    error = float((found - exact).norm() / exact.norm())
    assert error < {4: 0.16, 8: 0.012}[bits]


@settings(deadline=None, max_examples=20)
@given(ring=rings(), chunks=st.integers(1, 8))
def test_a_pruned_frame_counts_as_its_mean_token_repeated(ring, chunks):
    window, sink = ring.layout.window, ring.layout.sink
    ring.attributes = {"bits": 8, "keep": 0.4, "pool": window, "sink": sink, "recent": 0.0}
    ring.reset()
    for index in range(chunks):
        chunk = ring.chunk()
        output = ring.attend(chunk, index)
        pruned = ring.pruned(index)
        frames = ring.layout.length(index)
        fixed = min(frames, sink + ring.layout.chunk)
        assert frames - len(pruned) == max(min(round(0.4 * frames), frames), fixed)
        rows = [
            row
            for slot in range(frames)
            for row in (
                [len(ring) - window + slot] * ring.frame_tokens
                if slot in pruned
                else range(int(ring.pages[slot]) * ring.frame_tokens, int(ring.pages[slot] + 1) * ring.frame_tokens)
            )
        ]
        expanded = reference.attend_rows(chunk[0], *ring.states[:3], torch.tensor(rows), torch.zeros(len(rows)), 8)
        torch.testing.assert_close(output, expanded, atol=2e-3, rtol=2e-3)


@settings(deadline=None, max_examples=15)
@given(ring=rings(), chunks=st.integers(1, 6))
def test_keeping_everything_is_not_pruning(ring, chunks):
    window, sink = ring.layout.window, ring.layout.sink
    ring.attributes = {"bits": 4}
    ring.reset()
    pooled = ring.twin(pool=window, sink=sink, keep=1.0)
    for index in range(chunks):
        chunk = ring.chunk()
        assert torch.equal(ring.attend(chunk, index), pooled.attend(chunk, index))


def test_an_old_frame_that_changed_nothing_leaves_before_older_ones():
    """Of twenty frames one must go: the third, which repeats the second. The newest repeats too, but is the chunk."""
    ring = Ring(
        2, 64, 4, RingLayout(20, 0, 1), {"bits": 8, "keep": 0.974, "pool": 20, "recent": 0.2}, torch.Generator()
    )
    frames = [ring.chunk() for _ in range(20)]
    frames[2] = (frames[2][0], *frames[1][1:])
    frames[19] = (frames[19][0], *frames[18][1:])
    for index, frame in enumerate(frames):
        ring.attend(frame, index)
    assert ring.pruned(19) == {2}


@st.composite
def pruned_streams(draw):
    """A ring of few numbers, and the chunks of a stream that fills it, wraps, and starts again wherever it is."""
    chunk = draw(st.integers(1, 3))
    sink = draw(st.integers(0, 2)) * chunk
    window = min(sink + chunk * draw(st.integers(1, 9)), 32 // chunk * chunk)
    share = st.integers(1, 127).map(lambda part: part / 128) | st.sampled_from([0.1, 0.3])
    ring = Ring(
        heads=1,
        head_dim=2,
        frame_tokens=draw(st.integers(1, 3)),
        layout=RingLayout(window, sink, chunk),
        attributes={"bits": 8, "keep": draw(share), "recent": draw(share), "pool": window, "sink": sink},
        generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32))),
    )
    lengths = draw(st.lists(st.integers(1, 2 * window // chunk + 2), min_size=1, max_size=3))
    return ring, [index for length in lengths for index in range(length)]


@settings(deadline=None, max_examples=40)
@given(stream=pruned_streams(), passes=st.integers(1, 3))
def test_every_frame_is_kept_or_pruned_for_good_and_pages_never_run_out(stream, passes):
    """Frames of the pages and those of the pool are all that is valid, each once; as many stay as the rule says."""
    ring, indices = stream
    ring.poison()
    layout, prune, fullest = ring.layout, ring.prune(), 0
    before, seen = set(), {}
    for index in indices:
        before = set() if index == 0 else before
        for turn in range(passes):  # those of denoising, and the clean one
            ring.attend(ring.chunk(), index)
            assert turn == 0 or torch.equal(ring.pages, seen["pages"])
            seen["pages"] = ring.pages.clone()
        frames, slot = layout.length(index), layout.slot(index)
        own, pruned = set(range(slot, slot + layout.chunk)), ring.pruned(index)
        held = {place: page for place, page in enumerate(ring.pages.tolist()) if page >= 0}
        assert held.keys() == set(range(frames)) - pruned and own <= held.keys()
        assert len(set(held.values())) == len(held) and max(held.values()) < ring.frames
        assert before - own <= pruned
        newest = max(layout.chunk, math.ceil(prune.recent * frames - 1e-4))
        by_time = reference.slots_by_time(ring.progress(index), prune)
        always = {*range(min(layout.sink, frames)), *by_time[-newest:]}
        assert always <= held.keys() and len(held) == max(len(always), round(prune.keep * frames))
        before, fullest = pruned, max(fullest, len(held))
        rows, _ = reference.live_rows(ring.pages, len(ring), ring.progress(index), prune)
        assert len(set(rows.tolist())) == len(rows) == len(held) * ring.frame_tokens + len(pruned)
        assert int(rows.max()) < len(ring) and int((rows >= ring.frames * ring.frame_tokens).sum()) == len(pruned)
    assert fullest <= ring.frames and (fullest == ring.frames or max(indices) + 1 < layout.window // layout.chunk)


@settings(deadline=None, max_examples=20)
@given(stream=pruned_streams(), keys=st.integers(0, 2**32))
def test_pages_of_a_longer_ring_and_of_whatever_it_held_before_make_no_difference(stream, keys):
    """As at a size below the greatest of a package, and after a change of size or of the prompt."""
    ring, indices = stream
    longer = ring.twin()
    extra = 2 * ring.frame_tokens + 1
    longer.codes = torch.zeros(2, 1, len(ring) + extra, 2, dtype=torch.int8)
    longer.scales = torch.zeros(2, 1, len(ring) + extra, dtype=torch.float16)
    longer.poison()
    for index in indices:
        chunk = ring.chunk()
        expected = ring.attend(chunk, index)
        torch.testing.assert_close(longer.attend(chunk, index), expected, atol=2e-3, rtol=2e-3)
        assert torch.equal(longer.pages, ring.pages)


def test_a_ring_of_too_few_pages_is_refused():
    ring = Ring(1, 64, 2, RingLayout(6, 0, 2), {"bits": 4, "keep": 0.5, "pool": 6}, torch.Generator())
    ring.codes, ring.scales = ring.codes[:, :, 2:], ring.scales[:, :, 2:]
    with pytest.raises(ValueError, match="of 2 pages 1 are free for 2 frames"):
        for index in range(3):
            ring.attend(ring.chunk(), index)


def test_a_full_ring_is_read_from_its_oldest_frame():
    prune = reference.Prune(window=8, sink=2, keep=0.5, recent=0.25)
    progress = reference.Progress(write_index=4 * 10, valid_length=80, frame_tokens=10, tokens=20)
    assert reference.slots_by_time(progress, prune) == [0, 1, 6, 7, 2, 3, 4, 5]
    last = reference.Progress(write_index=6 * 10, valid_length=80, frame_tokens=10, tokens=20)
    assert reference.slots_by_time(last, prune) == list(range(8))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), bits=st.sampled_from([4, 8]), power=st.integers(1, 7), size=st.floats(0.1, 1e3))
def test_codes_are_half_a_step_off_at_most_and_survive_packing(seed, bits, power, size):
    values = torch.randn(5, 2**power, generator=torch.Generator().manual_seed(seed)) * size
    values[:, 0] += size / 4  # a scale that float16 holds to 11 bits
    codes, scales = reference.quantize(values, bits)
    assert torch.equal(reference.unpack(reference.pack(codes, bits), bits), codes)
    assert bool((codes.amin(dim=-1) == -(2 ** (bits - 1))).all())
    exact = values / scales.float().unsqueeze(-1)
    error = (codes - exact).abs()
    within = exact <= 2 ** (bits - 1) - 0.5  # beyond there is no code
    assert float(torch.where(within, error, 0).max()) <= 0.5 + 1e-3
    assert float(error.max()) <= 1 + 2 ** (bits - 12)


def test_rotation_is_the_normalised_hadamard_matrix():
    values = torch.randn(3, 128)
    matrix = torch.ones(1, 1)
    for _ in range(7):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    torch.testing.assert_close(reference.rotate(values), values @ matrix / 128**0.5)
    torch.testing.assert_close(reference.rotate(reference.rotate(values)), values)


@pytest.mark.parametrize("where", ["key", "value", "query"])
def test_what_is_not_finite_stays_in_its_head(where):
    ring = Ring(2, 64, 2, RingLayout(4, 0, 2), {"bits": 4}, torch.Generator().manual_seed(0))
    chunk = dict(zip(("query", "key", "value"), ring.chunk(), strict=True))
    chunk[where][0, 0, 1, 3] = torch.inf
    body = run_body(ring, tuple(chunk.values()), ring.numbers(1))
    output = ring.attend(tuple(chunk.values()), 1)
    for found in (output, body[0]):
        assert found[0, 1].isfinite().all()
        assert bool(found[0, 0, 1].isnan().all())
        assert bool(found[0, 0, 0].isnan().any()) == (where != "query")
    for codes, scales in ((ring.codes, ring.scales), body[1:3]):
        if where != "query":
            assert bool(scales[int(where == "value"), 0, 5].isnan()) and not codes[int(where == "value"), 0, 5].any()


def empty_states():
    """Eight rows of one head of 64 numbers."""
    codes, scales = torch.zeros(2, 1, 8, 32, dtype=torch.int8), torch.zeros(2, 1, 8).half()
    return codes, scales, torch.zeros(2, 1, 64).half(), torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(("write", "valid"), [(6, 8), (7, 8), (0, 1), (4, 5), (2**40, 2**40 + 2), (-1, 3), (0, 9)])
def test_the_torch_op_refuses_a_chunk_that_does_not_fit(write, valid):
    chunk = torch.zeros(3, 1, 1, 3, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match="does not fit"):
        torch_op()(*chunk, *empty_states(), torch.tensor([write]), torch.tensor([valid]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "4 or 8 bits"),
        ({"bits": 8}, "codes is"),
        ({"keep": 0.5}, "do not prune"),
        ({"pool": 33}, "do not prune"),
        ({"pool": 8}, "no ring"),
    ],
)
def test_attributes_that_are_not_the_operator_s_are_refused(change, message):
    chunk = torch.zeros(3, 1, 1, 2, 64, dtype=torch.float16)
    one = torch.tensor([1])
    with pytest.raises(ValueError, match=message):
        attend_in_place(*chunk, *empty_states(), one * 0, one * 2, one, **change)


def test_the_torch_op_leaves_its_inputs_alone_and_passes_torch_s_own_checks():
    ring = Ring(2, 64, 3, RingLayout(4, 0, 2), {"bits": 4}, torch.Generator().manual_seed(0))
    before = [state.clone() for state in ring.states]
    arguments = (*ring.chunk(), *ring.states, *ring.numbers(0))
    torch_op()(*arguments, bits=4)
    assert all(torch.equal(*pair) for pair in zip(before, arguments[3:7], strict=True))
    torch.library.opcheck(torch_op(), arguments, {"bits": 4}, test_utils=("test_schema", "test_faketensor"))
    assert np.prod(ring.codes.shape) * 8 == 2 * 2 * 12 * 64 * 4
