"""Kernels of W4A4Linear: what is launched fits the sources and the memory, and they compile without spills."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtgen.config.locate import data_directory
from rtgen.plugins.base import TensorView
from rtgen.plugins.compiler import compile_kernel
from rtgen.plugins.loader import Pointer
from rtgen.plugins.w4a4_linear import GATED, PLUGIN
from rtgen.plugins.w4a4_linear_kernel import (
    HOPPER_FP8,
    HOPPER_INT8,
    INT4,
    INT8,
    PATHS,
    W4A4LinearKernel,
    tiles,
)

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

    def launch(self, stream, source, entry, grid, block, *arguments, shared=0, overlap=False):
        assert stream == 7
        text = (data_directory("plugins") / source.file).read_text(encoding="utf-8")
        assert overlap == ("griddepcontrol.wait" in text)
        self.calls.append((source, entry, grid, block, arguments, shared))


def shapes_of(tokens, width, features, rank):
    shapes = [(1, tokens, width), (features, width // 2), (features, width // 64), (width,), (width,)]
    return [*shapes, (rank, width), (features, rank), (features,), (1, 3, features), (1, tokens, features)]


def launched(plugin, capability, multiprocessors, shapes, attributes):
    recorder = Recorder(capability, multiprocessors)
    shapes = shapes[: len(plugin.inputs)]
    inputs = [TensorView(ADDRESS + number, shape, "float16") for number, shape in enumerate(shapes)]
    output = TensorView(ADDRESS + 99, (*shapes[0][:-1], shapes[1][0]), "float16")
    plugin.kernel.launch(recorder, 7, inputs, [output], SCRATCH, attributes)
    return recorder.calls


def parameters(source, entry):
    """Kinds and names of what a kernel in a source takes."""
    text = (data_directory("plugins") / source.file).read_text(encoding="utf-8")
    found = re.search(rf'extern "C" __global__[^{{]*?\b{entry}\s*\(([^)]*)\)\s*\{{', text)
    assert found, f"{source.file} has no kernel {entry}"
    words = [parameter.replace("*", " * ").split() for parameter in found.group(1).split(",")]
    return [(Pointer if "*" in parts else {"int": int}[parts[-2]], parts[-1]) for parts in words]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize(("plugin", "epilogue"), [(PLUGIN, 0), (PLUGIN, 1), (GATED, 2)])
def test_every_launch_fits_its_kernel(capability, rotate, plugin, epilogue):
    attributes = {"rotate": rotate, "epilogue": epilogue}
    calls = launched(plugin, capability, 40, shapes_of(4680, 1536, 1000, 20), attributes)
    assert {call[0] for call in calls} <= set(plugin.kernel.sources(attributes, capability))
    assert [call[1] for call in calls] == ["quantize_rotated" if rotate else "quantize_plain", "linear"]
    for source, entry, grid, block, arguments, shared in calls:
        taken = parameters(source, entry)
        assert [type(argument) for argument in arguments] == [kind for kind, _ in taken]
        assert shared <= SHARED_OF_A_BLOCK[capability] << 10
        assert 0 < block <= 1024 and all(0 < size <= 65535 for size in grid)
        values = {name: argument for (_, name), argument in zip(taken, arguments, strict=True)}
        wanted = dict(zip(plugin.inputs, range(ADDRESS, ADDRESS + 10), strict=False))
        wanted |= {"weights": wanted["codes"], "output": ADDRESS + 99, "tokens": 4680, "features": 1000, "groups": 24}
        wanted |= {"rank": 20, "branch_steps": 1, "epilogue": epilogue, "tokens_per_gate": 1560 if epilogue == 2 else 1}
        rearranged = {"weights", "low_rank_up"} if "wgmma" in source.file else set()
        names = (wanted.keys() & values.keys()) - {"codes"} - rearranged
        assert {name: values[name] for name in names} == {name: wanted[name] for name in names}
        assert len(names) > 6


@settings(deadline=None, max_examples=200)
@given(
    capability=st.sampled_from([*CAPABILITIES, "10.3"]),
    multiprocessors=st.integers(1, 250),
    tokens=st.integers(1, 20_000),
    groups=st.integers(1, 200),
    features=st.integers(1, 10_000),
    rank=st.integers(0, 130),
)
def test_parts_of_the_scratch_memory_are_apart_and_hold_every_tile(
    capability, multiprocessors, tokens, groups, features, rank
):
    shapes = shapes_of(tokens, groups * 64, features, rank)
    room = PLUGIN.kernel.workspace(shapes[:8], {}, capability)
    quantize, linear = launched(PLUGIN, capability, multiprocessors, shapes, {"rotate": 0, "epilogue": 0})
    given = {name: value for call in (quantize, linear) for (_, name), value in
             zip(parameters(*call[:2]), call[4], strict=True)}  # fmt: skip
    path = PATHS.get(capability, INT8)
    tile = next(tile for tile in tiles(path, capability) if tile.source == linear[0])
    rows, columns = -(-tokens // tile.tokens) * tile.tokens, -(-features // path.feature_block) * path.feature_block
    steps, ranks = -(-groups // 2), given["branch_steps"] * 32
    assert path.feature_block % tile.features == 0 and rows <= given["token_stride"]
    sizes = {
        given["codes"]: rows * steps * path.code_row,
        given["token_scales"]: rows * steps * 4 if path.weight_row else groups * given["token_stride"] * 4,
        given["hidden"]: rows * ranks * 2,
        given["turned_scales"]: columns * steps * 32 if path.weight_row else groups * columns * 4,
    }
    if path.weight_row:
        sizes[given["wide_weights"]] = columns * steps * 128
        sizes[given["up"]] = columns * ranks * 2
        assert linear[4][3] == given["wide_weights"] and linear[4][5] == given["up"]
    assert ranks >= rank and quantize[2][1] == given["branch_steps"]
    places = sorted((address, address + size) for address, size in sizes.items())
    assert places[0][0] == SCRATCH and places[-1][1] <= SCRATCH + room
    assert all(first[1] <= second[0] and second[0] % 256 == 0 for first, second in pairwise(places))
    assert PLUGIN.kernel.workspace(shapes_of(tokens + 1, groups * 64, features, rank)[:8], {}, capability) >= room


@given(
    multiprocessors=st.integers(1, 250),
    tokens=st.integers(1, 9000),
    groups=st.integers(1, 150),
    features=st.integers(1, 9000),
    rank=st.integers(0, 70),
)
def test_constants_are_prepared_where_the_layer_then_finds_them(multiprocessors, tokens, groups, features, rank):
    shapes = shapes_of(tokens, groups * 64, features, rank)[:8]
    inputs = [TensorView(ADDRESS + number, shape, "float16") for number, shape in enumerate(shapes)]
    kept = 1 << 45
    kernel = W4A4LinearKernel()
    size = kernel.constants_bytes(shapes, "9.0")
    prepared, called = Recorder("9.0", multiprocessors), Recorder("9.0", multiprocessors)
    kernel.prepare(prepared, 7, inputs, kept)
    kernel = replace(kernel, constants=kept)
    kernel.launch(called, 7, inputs, inputs[:1], SCRATCH, {"rotate": 1, "epilogue": 0})

    def given_to(call):
        return {name: value for (_, name), value in zip(parameters(*call[:2]), call[4], strict=True)}

    (once,), (first, second) = map(given_to, prepared.calls), map(given_to, called.calls)
    assert (once["tokens"], once["weights"], first["weights"]) == (0, ADDRESS + 1, 0)
    columns = -(-features // HOPPER_FP8.feature_block) * HOPPER_FP8.feature_block
    steps, ranks = -(-groups // 2), second["branch_steps"] * 32
    sizes = {"turned_scales": columns * steps * 32, "wide_weights": columns * steps * 128, "up": columns * ranks * 2}
    places = sorted((once[name], once[name] + sizes[name]) for name in sizes)
    assert places[0][0] == kept and places[-1][1] <= kept + size
    assert all(one[1] <= other[0] for one, other in pairwise(places))
    assert (second["weights"], second["low_rank_up"]) == (once["wide_weights"], once["up"])
    scales = next(name for name in second if name in ("turned_scales", "feature_scales"))
    assert second[scales] == once["turned_scales"]
    room = kernel.workspace(shapes, {}, "9.0")
    for name in ("codes", "token_scales", "hidden"):
        assert SCRATCH <= first[name] == second[name] < SCRATCH + room
    assert room + size <= W4A4LinearKernel().workspace(shapes, {}, "9.0") + 256
    assert not any(W4A4LinearKernel().constants_bytes(shapes, other) for other in CAPABILITIES if other != "9.0")


def test_int4_tensor_cores_are_used_where_they_are_and_int8_ones_elsewhere():
    used = {capability: dict(PLUGIN.kernel.sources({}, capability)[0].defines)["INT8"] for capability in CAPABILITIES}
    assert used == {"7.5": 0, "8.0": 0, "8.6": 0, "8.9": 0, "9.0": 1, "12.0": 1}


def test_outputs_too_small_for_every_multiprocessor_take_the_smaller_tile():
    attributes = {"rotate": 0, "epilogue": 0}
    warps = {
        tokens: dict(launched(PLUGIN, "8.9", 58, shapes_of(tokens, 384, 1536, 32), attributes)[1][0].defines)["WARPS_M"]
        for tokens in (192, 4680)
    }
    assert warps == {192: 1, 4680: 2}


def numbers_of(*names, wgmma):
    """Integer constants of sources in ``plugins/``, with the macro WGMMA and INT8 on or both off."""
    text = "".join((data_directory("plugins") / name).read_text(encoding="utf-8") for name in names)
    found = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+)[;,]", text)}
    for name, on, off in re.findall(r"constexpr int (\w+) = (?:WGMMA|INT8) \? (\d+) : (\d+)[;,]", text):
        found[name] = int(on if wgmma else off)
    return found


@pytest.mark.parametrize("path", [INT4, HOPPER_FP8])
def test_the_sources_and_the_launch_plan_have_the_same_numbers(path):
    hopper = path is HOPPER_FP8
    numbers = numbers_of("w4a4_layout.cuh", path.quantize.file, wgmma=hopper)
    assert path.quantize.threads == numbers.get("THREADS", numbers.get("WARPS", 0) * 32)
    assert path.feature_block == numbers["FEATURE_BLOCK"] and path.code_row == numbers["CODE_ROW"]
    shapes = shapes_of(1000, 384, 1536, 40)
    call = launched(PLUGIN, "9.0" if hopper else "8.9", 58, shapes, {"rotate": 0, "epilogue": 0})[0]
    assert call[2][1:] == (-(-40 // numbers["RANKS"]),) and call[3] == path.quantize.threads
    if not hopper:
        assert path.quantize.tokens == numbers["TOKENS"] and path.quantize.preparing == numbers["PREPARING"]
        assert call[2][0] == -(-1000 // numbers["TOKENS"]) + numbers["PREPARING"]
        return
    assert path.weight_row == numbers["WEIGHT_ROW"] and path.feature_scales == numbers["SCALE_ROW"]
    assert path.quantize.tokens == numbers["TILES"] * numbers["TILE"] and call[2][0] == 58
    text = (data_directory("plugins") / path.quantize.file).read_text(encoding="utf-8")
    roles = dict(re.findall(r"(WARPS|DEPTH) = ROTATE \? (\d+ : \d+);", text))
    for warps, groups in zip(*(map(int, roles[name].split(" : ")) for name in ("WARPS", "DEPTH")), strict=True):
        rows = path.quantize.tokens + numbers["RANKS"] + 2  # the two vectors
        assert path.quantize.shared == warps * groups * rows * numbers["GROUP"] * 2
    tile = numbers_of("w4a4_linear_wgmma.cu", wgmma=True)
    assert path.token_block == tile["WARPGROUPS"] * 64 and path.feature_block == tile["FEATURES"]


@settings(deadline=None)
@given(multiprocessors=st.integers(1, 250), tokens=st.integers(1, 50_000))
def test_blocks_of_hopper_share_out_the_tokens(multiprocessors, tokens):
    blocks, (block_tokens,) = HOPPER_FP8.quantize.grid(tokens, multiprocessors)
    assert blocks == multiprocessors and block_tokens % 8 == 0 and 0 < block_tokens <= HOPPER_FP8.quantize.tokens
    if block_tokens < HOPPER_FP8.quantize.tokens:
        assert (
            (block_tokens - 8) * blocks < tokens <= block_tokens * blocks
        )  # one turn, and no block has one tile too many


def test_tiles_are_made_of_whole_blocks_and_fit_into_shared_memory():
    for path, capability in ((INT4, "7.5"), (INT4, "8.9"), (INT8, "12.0"), (HOPPER_INT8, "9.0"), (HOPPER_FP8, "9.0")):
        for tile in tiles(path, capability):
            assert path.token_block % tile.tokens == path.feature_block % tile.features == 0
            assert tile.shared <= SHARED_OF_A_BLOCK[capability] << 10


@pytest.mark.parametrize(
    "capability",
    ["8.6", "9.0", "12.0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("7.5", "8.0", "8.9"))],
)
def test_kernels_compile_for_every_gpu_and_without_spills(capability):
    for source in PLUGIN.kernel.sources({}, capability):
        resources = compile_kernel(source, capability).resources
        assert resources.keys() == ({"linear"} if "linear" in source.file else {"quantize_plain", "quantize_rotated"})
        for used in resources.values():
            assert used.registers <= 255 and used.shared <= 48 << 10
            if capability in WITHOUT_SPILLS:
                assert used.spill_stores == used.spill_loads == 0
            assert used.spill_stores <= 100  # on Hopper a few, outside the loop over products


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "capability"), [(INT8, "8.9"), (INT4, "9.0"), (INT8, "9.0"), (HOPPER_INT8, "9.0"), (HOPPER_FP8, "9.0")]
)
def test_the_paths_that_tests_compare_compile(path, capability):
    for source in W4A4LinearKernel(path=path).sources({}, capability):
        assert compile_kernel(source, capability).code
