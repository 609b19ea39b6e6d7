"""QuantizedKVCacheAttention on a CUDA GPU beside its reference: states, outputs, whole streams, CUDA graphs."""

import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

from rtgen.plugins import quantized_kv_cache_attention_reference as reference  # noqa: E402
from rtgen.plugins.quantized_kv_cache_attention import PLUGIN, attend_in_place, torch_op  # noqa: E402
from rtgen.plugins.torch_launch import launch_on_torch  # noqa: E402
from rtgen.runtime.kv_cache import RingLayout  # noqa: E402
from tests.plugins.ring_streams import Ring  # noqa: E402

TOLERANCE = 5e-3
"""Relative to the size of the output."""

# heads, head_dim, frame_tokens, (window, sink, chunk), bits, keep
CASES = [
    (1, 64, 1, (3, 0, 1), 4, 1.0),
    (1, 128, 1, (3, 0, 1), 8, 1.0),
    (3, 64, 7, (4, 1, 1), 8, 1.0),
    (2, 128, 31, (6, 0, 2), 4, 1.0),
    (5, 128, 64, (9, 3, 3), 4, 1.0),
    (4, 64, 129, (6, 0, 3), 4, 1.0),
    (12, 128, 60, (12, 3, 3), 8, 1.0),
    (7, 128, 211, (6, 2, 2), 4, 1.0),
    (2, 128, 1560, (21, 3, 3), 4, 1.0),
    (1, 64, 5, (4, 0, 1), 4, 0.5),
    (6, 64, 64, (12, 0, 3), 4, 0.5),
    (12, 128, 60, (21, 3, 3), 4, 0.5),
    (3, 128, 137, (8, 2, 2), 8, 0.5),
    (2, 64, 33, (32, 0, 1), 8, 0.3),
    (3, 128, 66, (9, 3, 3), 4, 0.97),
    (2, 128, 1560, (21, 3, 3), 4, 0.5),
]


def ring_of(heads, head_dim, frame_tokens, layout, bits, keep, seed=0):
    prune = {"pool": layout[0], "sink": layout[1], "keep": keep} if keep < 1 else {}
    generator = torch.Generator().manual_seed(seed)
    return Ring(heads, head_dim, frame_tokens, RingLayout(*layout), {"bits": bits, **prune}, generator, "cuda")


def poison_allocator():
    """Memory that is allocated next is full of NaN (and of the greatest integers)."""
    blocks = [torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in (1 << 28, *[1 << 19] * 8)]
    torch.cuda.synchronize()
    del blocks


def run_kernels(ring, chunk, numbers):
    """The plugin with an output and scratch memory full of NaN."""
    poison_allocator()
    output, states = torch.full_like(chunk[0], torch.nan), ring.states
    attributes = {**PLUGIN.attributes, **ring.attributes, "head_dim": ring.head_dim}
    launch_on_torch(PLUGIN, (*chunk, *states, *numbers), (output, *states), attributes)
    torch.cuda.synchronize()
    return output


def expected_output(ring, query, index):
    """By the reference, from the states as they are."""
    rows, bias = reference.live_rows(ring.pages, ring.codes.shape[2], ring.progress(index), ring.prune())
    return reference.attend_rows(query, *ring.states[:3], rows.cuda(), bias.cuda(), int(ring.attributes["bits"]))


def relative_error(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def check_output(ring, chunk, output, index):
    expected = expected_output(ring, chunk[0], index)
    assert output.isfinite().all()
    assert relative_error(output, expected) <= TOLERANCE
    worst = (output.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-3)
    assert float(worst.max()) <= 10 * TOLERANCE  # no single token is wrong


def check_states(ring, before, chunk, index):
    """What was written is what the reference writes, and where it does, and nothing else changed."""
    bits, progress, prune = int(ring.attributes["bits"]), ring.progress(index), ring.prune()
    codes, scales, centres, pages = before
    if progress.is_first:
        means = torch.stack([chunk[1][0], chunk[2][0]]).float().mean(dim=2)
        assert ((ring.centres.float() - means).abs() <= means.abs() * 2**-10 + 1e-6).all()
        centres = ring.centres.clone()
    assert torch.equal(ring.centres, centres)
    if prune.is_active:
        reference.assign_pages(codes, scales, pages, progress, bits, prune)
    assert torch.equal(ring.pages, pages)
    rows = reference.chunk_rows(pages, progress, prune).cuda()
    reference.write_chunk(chunk[1], chunk[2], codes, scales, centres, rows, bits)
    touched = torch.zeros(codes.shape[2], dtype=torch.bool, device="cuda")
    touched[rows] = True
    if prune.is_active:
        reference.refresh_pool(codes, scales, rows, progress, bits, prune.window)
        first = codes.shape[2] - prune.window + progress.write_frame
        touched[first : first + progress.chunk] = True
    assert torch.equal(ring.codes[:, :, ~touched], codes[:, :, ~touched])
    assert torch.equal(ring.scales[:, :, ~touched].view(torch.int16), scales[:, :, ~touched].view(torch.int16))
    # Sums of a pool row have another order: its codes may fall on the other side of a tie.
    found, wanted = (reference.unpack(state[:, :, touched], bits).int() for state in (ring.codes, codes))
    assert int((found - wanted).abs().max()) <= 1
    assert float((found != wanted).float().mean()) <= 1e-3
    torch.testing.assert_close(ring.scales[:, :, touched], scales[:, :, touched], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streams_that_wrap_and_start_again(case):
    ring = ring_of(*case)
    ring.poison()
    turn, passes = ring.layout.window // ring.layout.chunk, 2 if ring.prune().is_active else 1
    indices = [index for index in (*range(turn + 3), 0, 1) for _ in range(passes)]
    for index in indices[: 5 if ring.frame_tokens > 1000 else None]:
        chunk, before = ring.chunk(), [state.clone() for state in ring.states]
        output = run_kernels(ring, chunk, ring.numbers(index))
        check_states(ring, before, chunk, index)
        check_output(ring, chunk, output, index)


@pytest.mark.parametrize("case", [case for case in CASES if case[5] < 1 and case[2] < 100], ids=str)
def test_a_ring_that_is_longer_than_its_frames_need(case):
    """A package's greatest size decides its length; smaller frames have pages to spare, and a change fills it anew."""
    ring = ring_of(*case)
    extra = 3 * ring.frame_tokens + 1
    ring.codes = torch.zeros(*ring.codes.shape[:2], len(ring) + extra, ring.codes.shape[3], dtype=torch.int8)
    ring.scales = torch.zeros(*ring.scales.shape[:2], len(ring) + extra, dtype=torch.float16)
    ring.poison()
    for index in [*range(ring.layout.window // ring.layout.chunk + 2), 0, 1]:
        chunk, before = ring.chunk(), [state.clone() for state in ring.states]
        output = run_kernels(ring, chunk, ring.numbers(index))
        check_states(ring, before, chunk, index)
        check_output(ring, chunk, output, index)


def test_nothing_is_written_outside_a_ring_of_too_few_pages():
    """The processor refuses it; kernels leave out what has no page."""
    ring = ring_of(2, 64, 9, (8, 0, 2), 4, 0.5)
    shorter = [state[:, :, 18:].contiguous() for state in ring.states[:2]]  # two pages of four
    guarded = [torch.full((state.numel() + 4096,), 77, dtype=state.dtype, device="cuda") for state in shorter]
    for index in range(6):
        states = [whole[2048:-2048].view(state.shape) for whole, state in zip(guarded, shorter, strict=True)]
        attend_in_place(*ring.chunk(), *states, *ring.states[2:], *ring.numbers(index), **ring.attributes)
    torch.cuda.synchronize()
    assert all((whole[:2048] == 77).all() and (whole[-2048:] == 77).all() for whole in guarded)
    assert set(ring.pages.tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize("case", [CASES[8], CASES[15]], ids=str)
def test_a_full_ring_that_was_filled_at_once(case):
    """The longest rings, without the passes that fill them."""
    ring = ring_of(*case)
    bits, last = int(ring.attributes["bits"]), ring.layout.window // ring.layout.chunk
    for index in range(last):
        _, key, value = ring.chunk()
        reference.enter_chunk(key, value, *ring.states, ring.progress(index), bits, ring.prune())
    chunk = ring.chunk()
    check_output(ring, chunk, run_kernels(ring, chunk, ring.numbers(last)), last)


@pytest.mark.parametrize("case", [CASES[4], CASES[10], CASES[12]], ids=str)
def test_one_cuda_graph_serves_every_chunk(case):
    ring, eager = ring_of(*case), ring_of(*case)
    static, numbers = ring.chunk(), ring.numbers(0)
    attend_in_place(*static, *ring.states, *numbers, **ring.attributes)  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attend_in_place(*static, *ring.states, *numbers, **ring.attributes)
    for index in [*range(8), 0, 1, 2]:
        for target, source in zip((*static, *numbers), (*eager.chunk(), *ring.numbers(index)), strict=True):
            target.copy_(source)
        graph.replay()
        expected = eager.attend(tuple(tensor.clone() for tensor in static), index)
        assert all(map(torch.equal, ring.states, eager.states))
        assert relative_error(output, expected) <= TOLERANCE
        check_output(ring, static, output, index)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_token_that_is_not_finite_spoils_no_other_head(bits, head_dim):
    ring = ring_of(3, head_dim, 70, (4, 0, 2), bits, 1.0)
    ring.attend(ring.chunk(), 0)
    query, key, value = ring.chunk()
    query[0, 0, 5, 1], key[0, 1, 3, 2] = torch.nan, torch.inf
    output = run_kernels(ring, (query, key, value), ring.numbers(1))
    assert bool(ring.scales[0, 1, 143].isnan()) and not ring.codes[0, 1, 143].any()
    finite = [token for token in range(140) if token != 5]
    assert output[0, 0, finite].isfinite().all() and output[0, 2].isfinite().all()
    expected = expected_output(ring, query, 1)
    assert relative_error(output[0, 0, finite], expected[0, 0, finite]) <= TOLERANCE


def test_large_and_small_numbers():
    """Logits of several hundred, values of some hundreds and of a ten-thousandth."""
    for size, value_size in ((24.0, 500.0), (1.0, 1e-4), (0.01, 1.0)):
        ring = ring_of(4, 128, 100, (6, 0, 3), 4, 1.0, seed=3)
        for index in range(3):
            query, key, value = ring.chunk()
            chunk = ((query * size).half(), (key * size).half(), (value.float() * value_size).half())
            output = run_kernels(ring, chunk, ring.numbers(index))
        check_output(ring, chunk, output, 2)


def test_the_functional_op_leaves_its_inputs_alone():
    ring, twin = ring_of(*CASES[4]), ring_of(*CASES[4])
    chunk, numbers = ring.chunk(), ring.numbers(0)
    before = ring.codes.clone()
    output, *states = torch_op()(*chunk, *ring.states, *numbers, bits=4)
    assert torch.equal(ring.codes, before)
    assert torch.equal(output, twin.attend(chunk, 0))
    assert all(map(torch.equal, states, twin.states))
