"""A K/V ring of 4-bit codes, from recipe or ``--kv-bits`` to frames: ONNX Runtime plays what torch computes."""

import os
from contextlib import closing

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build.plan import BuildPlan, plan_build  # noqa: E402
from rtgen.build.ring_values import decoded  # noqa: E402
from rtgen.build.verify import compare_with_onnxruntime, plan_of  # noqa: E402
from rtgen.build.walk import build  # noqa: E402
from rtgen.config.recipe import KVCacheFormat  # noqa: E402
from rtgen.engine.manifest import resolve_shape  # noqa: E402
from rtgen.engine.package import open_package  # noqa: E402
from rtgen.errors import UsageError  # noqa: E402
from rtgen.export.denoiser import CodedDenoiserPass  # noqa: E402
from rtgen.fidelity.simulated_backend import sessions_of  # noqa: E402
from rtgen.fidelity.simulated_model import simulate  # noqa: E402
from rtgen.models.kv_ring import CodedRingSettings  # noqa: E402
from rtgen.plugins import quantized_kv_cache_attention_reference as reference  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession  # noqa: E402
from rtgen.runtime.chunk_memory import ChunkMemory  # noqa: E402
from rtgen.runtime.denoise import Denoiser  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
SIZES = ((32, 48), (48, 80))
CHUNKS, SWITCH = 7, 5
"""Window 9 holds three: the ring wraps, and the sink of 3 frames stays."""
FORMATS = {"codes": KVCacheFormat(bits=4), "pruned": KVCacheFormat(bits=4, keep=0.5, recent=0.2)}
RECIPE = """
name = "pruned"
title = "4-bit keys and values, half of the frames pruned"
precision = "float32"
compilers = ["onnxruntime"]

[kv_cache]
bits = 4
keep = 0.5
recent = 0.2
"""


@pytest.fixture(scope="module")
def built(tiny_models, tmp_path_factory):
    """Packages with rings of both formats; each for a ring that follows the frame size, and with a fixed one."""
    tiny, own = tiny_models["tiny"], tmp_path_factory.mktemp("configs")
    (own / "recipes").mkdir()
    (own / "recipes" / "pruned.toml").write_text(RECIPE, encoding="utf-8")
    requests = {"codes": {"kv_bits": 4}, "pruned": {"recipe": "pruned"}}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", f"{own}{os.pathsep}{tiny.configs}")
        for name, fields in requests.items():
            request = tiny.request(sizes=SIZES, **fields)
            found[name, "exact"] = build(request, SilentProgress())
            with patch.context() as inner:
                inner.setattr(BuildPlan, "fixed_ring", property(lambda plan: plan.ring_at(plan.largest)))
                found[name, "fixed"] = build(request, SilentProgress())
    return found


class Watched:
    """A session of ONNX Runtime; each pass is computed in torch too, from the same inputs and the same ring."""

    def __init__(self, session, module):
        self._session, self._module = session, module
        self.component, self.passes = session.component, []

    def __getattr__(self, name):
        return getattr(self._session, name)

    def copy(self, name, source, source_name):
        self._session.write(name, self._session.read(source_name))

    def run(self):
        states = [state.input for state in self.component.states]
        given = {tensor.name: torch.from_numpy(self.read(tensor.name)) for tensor in self.component.inputs}
        caches = [given.pop(name) for name in states]
        with torch.no_grad():
            expected = self._module(*given.values(), caches)
        self._session.run()
        found = [torch.from_numpy(self.read(tensor.name)) for tensor in self.component.outputs]
        valid = int(given["valid_length"])
        names = [tensor.name for tensor in self.component.outputs]
        self.passes.append((valid, dict(zip(names, zip(found, expected, strict=True), strict=True))))


def relative(found, expected):
    return (found.float() - expected.float()).norm() / expected.float().norm()


def seen_rows(pages, valid, rows):
    """Of frames of six tokens: those in pages, and the pool's; where nothing is pruned the valid ones."""
    if len(pages) == 1:
        return list(range(valid))
    frames = valid // 6
    held = [int(page) * 6 + token for page in pages[:frames] if page >= 0 for token in range(6)]
    return [*held, *range(rows - len(pages), rows - len(pages) + frames)]


def stream(session, model, size, contexts):
    """Latents past the window, with a change of prompt, which fills the ring again."""
    sizes = {"rows": size[0] // 16, "columns": size[1] // 16}
    denoiser, memory = Denoiser(session, model, sizes, seed=5), ChunkMemory(model.window, model.sink, model.chunk, 1024)
    denoiser.set_context(contexts[0])
    found = []
    for chunk in range(CHUNKS):
        if chunk == SWITCH:
            denoiser.set_context(contexts[1])
            denoiser.refill(memory)
        denoiser.generate(chunk, memory.position)
        found.append(session.read("denoised"))
        memory.add(found[-1])
    return np.concatenate(found, axis=2)


@pytest.fixture(scope="module")
def contexts(tiny_models):
    encoder = tiny_models["tiny"].config.text_encoder
    return np.random.default_rng(1).standard_normal((2, 1, encoder.max_tokens, encoder.dim)).astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_every_pass_of_a_stream_is_that_of_the_torch_modules(tiny_models, built, contexts, name):
    outcome, config = built[name, "exact"], tiny_models["tiny"].config
    module = CodedDenoiserPass(tiny_models["tiny"].modules()["denoiser"], CodedRingSettings.of(config, FORMATS[name]))
    with closing(OnnxRuntimeBackend(open_package(outcome.package), threads=1)) as backend:
        session = Watched(backend.open("denoiser"), module)
        stream(session, outcome.manifest.model, SIZES[0], contexts)
    assert len(session.passes) == 3 * CHUNKS + 2
    assert {valid for valid, _ in session.passes} == {18, 36, 54}  # the window is full, and the ring has wrapped
    worst = {}
    for valid, tensors in session.passes:
        for tensor, (found, expected) in tensors.items():
            kind = tensor.removesuffix("_out").rstrip("_01")
            if kind in ("kv_codes", "kv_scales"):
                seen = seen_rows(tensors[f"kv_pages_{tensor.split('_')[2]}_out"][1], valid, found.shape[2])
                found, expected = found[:, :, seen], expected[:, :, seen]
            # A number at the edge between two codes may fall on either side.
            is_whole = kind in ("kv_codes", "kv_pages")
            error = (found != expected).float().mean() if is_whole else relative(found, expected)
            worst[kind] = max(worst.get(kind, 0.0), float(error))
    limits = {"denoised": 0.01, "noise_estimate": 0.01, "change": 0.01}
    limits |= {"kv_codes": 0.02, "kv_scales": 0.02, "kv_centres": 0.001, "kv_pages": 1e-9}
    assert worst.keys() == limits.keys()
    assert all(worst[kind] < limit for kind, limit in limits.items()), worst


@pytest.mark.parametrize("name", FORMATS)
def test_a_simulated_denoiser_sees_the_ring_of_the_recipe(tiny_models, built, contexts, name):
    config, model = tiny_models["tiny"].config, built[name, "exact"].manifest.model

    def simulated(ring):
        denoiser = simulate(tiny_models["tiny"].modules()["denoiser"], "float32")
        return stream(sessions_of(config, denoiser, ring)(), model, SIZES[0], contexts)

    def distance(one, other):
        return np.sqrt(np.mean((one - other) ** 2))

    with closing(OnnxRuntimeBackend(open_package(built[name, "exact"].package), threads=1)) as backend:
        found = stream(backend.open("denoiser"), model, SIZES[0], contexts)
    expected, floats, whole = simulated(FORMATS[name]), simulated(None), simulated(FORMATS["codes"])
    assert distance(found, expected) < 0.5 * distance(expected, floats) < 0.1
    if name == "pruned":
        assert np.array_equal(expected[:, :, :6], whole[:, :, :6])  # nothing is old before the window is full
        assert distance(expected, whole) > distance(found, expected)


def play(pipeline, size):
    stream = pipeline.stream(PROMPT, seed=6, size=size)
    frames = [next(stream) for _ in range(SWITCH)]
    pipeline.prompt = OTHER
    return np.stack([*frames, *(next(stream) for _ in range(CHUNKS - SWITCH))]).astype(int)


@pytest.mark.parametrize("name", FORMATS)
def test_a_fixed_ring_gives_the_same_frames_whatever_it_held_before(built, monkeypatch, name):
    """As on a device whose memory held something else: rows behind the valid length, and the pool's, are never seen."""
    with Pipeline.open(built[name, "exact"].package) as pipeline:
        expected = play(pipeline, SIZES[0])
    reset = OnnxRuntimeSession.reset

    def poison(session):
        reset(session)
        sizes = {"rows": 2, "columns": 3}
        for state in session.component.states:
            tensor = next(tensor for tensor in session.component.inputs if tensor.name == state.input)
            if tensor.name.startswith("kv_"):
                value = {"int8": 119, "int64": 3}.get(tensor.dtype, np.nan)
                session.write(tensor.name, np.full(resolve_shape(tensor.shape, sizes), value, tensor.dtype))

    with Pipeline.open(built[name, "fixed"].package) as pipeline:
        assert np.abs(play(pipeline, SIZES[0]) - expected).mean() < 0.1
        clean = play(pipeline, SIZES[0])
        monkeypatch.setattr(OnnxRuntimeSession, "reset", poison)
        assert np.array_equal(play(pipeline, SIZES[0]), clean)


def test_the_tables_and_the_memory_plan_count_codes_scales_and_centres(built):
    layers, heads, width = 2, 2, 32
    for (name, kind), outcome in built.items():
        frames, pool = (6, 9) if name == "pruned" else (9, 0)  # the chunk, the sink; nine pooled
        rows = frames * 3 * 5 + pool
        sizes = {} if kind == "fixed" else {"rows": 3, "columns": 5}
        entry = outcome.manifest.components["denoiser"]
        shapes = {t.name[:-2]: (t.dtype, resolve_shape(t.shape, sizes)) for t in entry.inputs if t.name[:3] == "kv_"}
        assert shapes == {
            "kv_codes": ("int8", (2, heads, rows, width // 2)),
            "kv_scales": ("float16", (2, heads, rows)),
            "kv_centres": ("float16", (2, heads, width)),
            "kv_pages": ("int64", (pool or 1,)),
        }
        layer = 2 * heads * (rows * (width // 2 + 2) + 2 * width) + 8 * (pool or 1)
        assert outcome.manifest.memory_plan.kv_ring == layers * layer
        assert outcome.manifest.kv_bits == 4
        assert all(state.update == "in_place" for state in entry.states)


def test_the_bits_asked_for_are_part_of_the_key_and_found_again(tiny, tiny_built, built):
    coded, plain = built["codes", "exact"], tiny_built("tiny")
    assert plan_build(tiny.request(kv_bits=4, sizes=SIZES)).package_key == coded.key
    assert plan_build(tiny.request(kv_bits=8, sizes=SIZES)).package_key != coded.key
    assert plan_build(tiny.request(kv_bits=16)).package_key == plain.key  # the recipe's own
    _, request = plan_of(coded.manifest, tiny.weights, tiny.store)
    assert request.kv_bits == 4 and plan_build(request).package_key == coded.key


def test_a_package_agrees_with_its_graphs(tiny, built):
    report = compare_with_onnxruntime(
        built["codes", "exact"].package, SilentProgress(), weights=tiny.weights, store=tiny.store
    )
    assert report.passed, report.rows
    layers = {row.tensor for row in report.rows if row.tensor.startswith("kv_")}
    assert layers == {f"kv_{kind}_{layer}_out" for kind in ("values", "centres", "pages") for layer in (0, 1)}


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_compared_as_the_numbers_they_stand_for(bits):
    random, lowest = np.random.default_rng(bits), -(2 ** (bits - 1))
    numbers = random.integers(lowest, -lowest, (2, 3, 5, 8))
    scales = random.standard_normal((2, 3, 5)).astype(np.float16)
    stored = reference.pack(torch.from_numpy(numbers.astype(np.int8)), bits).numpy()
    expected = numbers * scales.astype(np.float32)[..., None]
    assert np.array_equal(decoded(stored, scales, 8), expected)
    negated = reference.pack(torch.from_numpy(np.clip(-numbers, lowest, -lowest - 1).astype(np.int8)), bits).numpy()
    inside = numbers > lowest
    assert np.array_equal(decoded(negated, -scales, 8)[inside], expected[inside])


def test_heads_that_no_kernel_is_made_for_are_refused_on_gpus(tiny):
    with pytest.raises(UsageError, match="on rtx4090 is for heads of 64 or 128 numbers, and tiny's have 32") as refused:
        plan_build(tiny.request("rtx4090", kv_bits=4))
    assert refused.value.hint == "--kv-bits 16"
