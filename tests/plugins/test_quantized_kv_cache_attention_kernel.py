"""Kernels of QuantizedKVCacheAttention: what is launched fits the sources, and they compile without spills."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtgen.config.kv_cache import most_live
from rtgen.config.locate import data_directory
from rtgen.plugins.base import TensorView
from rtgen.plugins.loader import Pointer
from rtgen.plugins.quantized_kv_cache_attention import PLUGIN
from rtgen.plugins.quantized_kv_cache_attention_kernel import Sizes, attend_of, grid_blocks

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0")
WITHOUT_SPILLS = ("8.6", "8.9", "12.0")
SHARED_OF_A_BLOCK = {"7.5": 64, "8.0": 163, "8.6": 99, "8.9": 99, "9.0": 227, "12.0": 99}
"""KiB (CUDA programming guide, "Technical Specifications per Compute Capability")."""
ADDRESS, SCRATCH = 1 << 40, 1 << 50


class Recorder:
    """Stands in for the kernels on a GPU."""

    def __init__(self, compute_capability, multiprocessors):
        self.compute_capability, self.multiprocessors = compute_capability, multiprocessors
        self.calls = []

    def launch(self, stream, source, entry, grid, block, *arguments, shared=0):
        assert stream == 7
        self.calls.append((source, entry, grid, block, arguments, shared))


def attributes_of(bits=4, keep=1.0, pool=0, head_dim=128):
    return {**PLUGIN.attributes, "bits": bits, "keep": keep, "pool": pool, "head_dim": head_dim}


def shapes_of(heads, tokens, head_dim, rows, bits):
    chunk = (1, heads, tokens, head_dim)
    states = ((2, heads, rows, head_dim * bits // 8), (2, heads, rows), (2, heads, head_dim), (21,))
    return (chunk, chunk, chunk, *states, (1,), (1,), (1,))


def launched(capability, multiprocessors, shapes, attributes):
    recorder = Recorder(capability, multiprocessors)
    inputs = [
        TensorView(ADDRESS + number, shape, dtype)
        for number, (shape, dtype) in enumerate(zip(shapes, PLUGIN.input_types, strict=True))
    ]
    outputs = [TensorView(ADDRESS + 10, shapes[0], "float16"), *inputs[3:7]]
    PLUGIN.kernel.launch(recorder, 7, inputs, outputs, SCRATCH, attributes)
    return recorder.calls


def parameters(source, entry):
    """Kinds and names of what a kernel in a source takes."""
    text = (data_directory("plugins") / source.file).read_text(encoding="utf-8")
    found = re.search(rf'extern "C" __global__[^{{]*?\b{entry}\s*\(([^)]*)\)\s*\{{', text)
    assert found, f"{source.file} has no kernel {entry}"
    kinds = {"int": int, "float": float}
    result = []
    for parameter in found.group(1).split(","):
        words = parameter.replace("*", " * ").split()
        result.append((Pointer if "*" in words else kinds[words[-2]], words[-1]))
    return result


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_launch_fits_its_kernel(capability, keep, bits, head_dim):
    pool = 21 if keep < 1 else 0
    attributes = attributes_of(bits, keep, pool, head_dim)
    shapes = shapes_of(12, 4680, head_dim, 21 * 1560 + pool, bits)
    calls = launched(capability, 40, shapes, attributes)
    sources = PLUGIN.kernel.sources(attributes, capability)
    assert {call[0] for call in calls} == set(sources)
    assert [call[1] for call in calls] == [
        "centre", "plan", "quantize", *(["pool"] if keep < 1 else []), "attend", "combine",
    ]  # fmt: skip
    for source, entry, grid, block, arguments, shared in calls:
        taken = parameters(source, entry)
        assert [type(argument) for argument in arguments] == [kind for kind, _ in taken], entry
        assert shared <= SHARED_OF_A_BLOCK[capability] << 10
        assert 0 < block <= 1024 and all(0 < size <= 65535 for size in grid)
        # Both sources call the same thing by the same name, or by a longer one.
        given = {name: argument for (_, name), argument in zip(taken, arguments, strict=True)}
        names = {
            "codes": 3,
            "scales": 4,
            "centres": 5,
            "pages": 6,
            "write_index": 7,
            "valid_length": 8,
            "frame_tokens": 9,
            "out": 10,
        }
        for name, number in names.items():
            assert given.get(name, ADDRESS + number) == ADDRESS + number


@settings(deadline=None, max_examples=200)
@given(
    capability=st.sampled_from([*CAPABILITIES, "10.3"]),
    multiprocessors=st.integers(1, 250),
    heads=st.integers(1, 40),
    tokens=st.integers(1, 20_000),
    head_dim=st.sampled_from([64, 128]),
    bits=st.sampled_from([4, 8]),
    pool=st.integers(0, 32),
    ring=st.integers(1, 60_000),
)
def test_the_parts_of_the_scratch_memory_are_apart_and_inside(
    capability, multiprocessors, heads, tokens, head_dim, bits, pool, ring
):
    attributes = attributes_of(bits, 0.5 if pool else 1.0, pool, head_dim)
    shapes = shapes_of(heads, tokens, head_dim, ring + pool, bits)
    room = PLUGIN.kernel.workspace(shapes, attributes, capability)
    calls = {call[1]: call for call in launched(capability, multiprocessors, shapes, attributes)}
    source, _, grid, _, arguments, _ = calls["attend"]
    attend, blocks = attend_of(capability, head_dim), grid[0]
    padded = arguments[11]
    assert padded % attend.queries == 0 and tokens <= padded < tokens + attend.queries
    assert calls["combine"][2] == (heads * padded // attend.queries,) and calls["combine"][4][-1] == blocks
    worst_tiles = (
        -(-ring // attend.keys) + (pool + 1) // 2 + 1
    )  # a part of a tile at the end of every run, and the pool
    sizes = {
        arguments[0]: heads * padded * head_dim,
        arguments[1]: heads * padded * 4,
        arguments[5]: 16 * (1 + worst_tiles),
        arguments[7]: 2 * blocks * attend.queries * head_dim * 4,
        arguments[8]: 2 * blocks * 2 * attend.queries * 4,
    }
    places = sorted((address, address + size) for address, size in sizes.items())
    assert places[0][0] == SCRATCH and places[-1][1] <= SCRATCH + room
    assert all(first[1] <= second[0] and second[0] % 256 == 0 for first, second in pairwise(places))
    assert source.file == attend.file


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_pass_takes_less_beside_the_ring_than_the_codes_of_one_chunk(capability, keep):
    """Wan 2.1 1.3B at 480x832; a chunk's codes lie in the rings of 30 layers, which share the scratch memory."""
    window, pool = most_live(21, 0, 3, keep, 0.25), 21 if keep < 1 else 0
    shapes = shapes_of(12, 4680, 128, window * 1560 + pool, 4)
    assert [window * 1560 + pool, keep] in ([32_760, 1.0], [15_621, 0.5])
    room = PLUGIN.kernel.workspace(shapes, attributes_of(4, keep, pool), capability)
    assert room < 30 * 2 * 12 * 4680 * (128 // 2 + 2) / 5


def test_workspace_grows_with_every_size():
    """Engines plan it for their greatest shapes."""
    attributes = attributes_of()
    small = PLUGIN.kernel.workspace(shapes_of(6, 100, 128, 1000, 4), attributes, "8.9")
    for larger in ((7, 100, 128, 1000), (6, 200, 128, 1000), (6, 100, 128, 90_000)):
        assert PLUGIN.kernel.workspace(shapes_of(*larger, 4), attributes, "8.9") > small


def test_all_blocks_of_the_grid_run_at_once():
    """Shared memory limits them where registers would allow more: a block takes a KiB besides its own."""
    for capability, kib in {"7.5": 64, "8.0": 164, "8.6": 100, "9.0": 228}.items():
        for bits in (4, 8):
            attend, sizes = attend_of(capability, 128), Sizes(12, 4680, 128, 32_760)
            blocks = grid_blocks(attend, sizes, bits, capability, multiprocessors=10) / 10
            assert 1 <= blocks <= attend.blocks
            assert blocks * (attend.shared_bytes(128, bits) + 1024) <= kib << 10


def test_a_block_gets_no_more_tasks_than_it_has_room_for():
    """A slice of a Hopper GPU, and far more tokens than any model has."""
    attend, sizes = attend_of("9.0", 128), Sizes(40, 200_000, 128, 300_000)
    assert attend.most_tasks is not None
    blocks = grid_blocks(attend, sizes, 4, "9.0", multiprocessors=16)
    assert sizes.tasks(attend) <= blocks * attend.most_tasks and blocks > 16


def compiled(bits, head_dim, capability):
    compiler = pytest.importorskip("rtgen.plugins.compiler")
    pytest.importorskip("cuda.core")
    for source in PLUGIN.kernel.sources(attributes_of(bits, 1.0, 0, head_dim), capability):
        cubin = compiler.compile_kernel(source, capability)
        assert cubin.code[:4] == b"\x7fELF"
        yield from cubin.resources.items()


def check(bits, head_dim, capability):
    resources = dict(compiled(bits, head_dim, capability))
    assert {"centre", "quantize", "pool", "plan", "attend", "combine"} <= resources.keys()
    for entry, used in resources.items():
        if capability in WITHOUT_SPILLS:
            assert (used.spill_stores, used.spill_loads) == (0, 0), entry
    attend, registers = attend_of(capability, head_dim), 65_536
    blocks = grid_blocks(attend, Sizes(1, 1, head_dim, 1), bits, capability, multiprocessors=1)
    used = -(-resources["attend"].registers // 8) * 8 * attend.threads
    assert used * blocks <= registers


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_shipped_shape_compiles_for_every_gpu(capability):
    check(4, 128, capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("bits", "head_dim"), [(4, 64), (8, 64), (8, 128)])
def test_every_shape_compiles_for_every_gpu(bits, head_dim, capability):
    check(bits, head_dim, capability)
