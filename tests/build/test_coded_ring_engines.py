"""The bundled model's denoiser with a K/V ring of codes: its attention is the plugin on every GPU, updated in place."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx_ir as ir

from rtgen.build.engines import shape_ranges
from rtgen.build.graphs import compiler_passes, export_one
from rtgen.build.kernels import sources, write_uses
from rtgen.build.plan import plan_build
from rtgen.build.request import BuildRequest
from rtgen.engine import trt
from rtgen.engine.builder import EngineJob, build_engine
from rtgen.export.ring_states import with_ring
from rtgen.passes.base import run_passes
from rtgen.passes.mark_plugins import marked_nodes
from rtgen.plugins.registry import PLUGINS
from rtgen.progress import SilentProgress

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"),
]
NAME, LAYERS = "QuantizedKVCacheAttention", 6
RECIPE = """
name = "pruned"
title = "FP16, half of the frames pruned"
precision = "float16"
compilers = ["tensorrt_rtx"]
compute_capabilities = ["8.9"]

[kv_cache]
bits = 4
keep = 0.5
"""


class Prepared:
    """The graph that the compiler is given for a ring of ``bits``."""

    def __init__(self, folder, bits, recipe="fp16"):
        folder.mkdir()
        self.folder, self.bits = folder, bits
        request = BuildRequest("rtx4080-laptop", recipe=recipe, sizes=((128, 128),), store=folder, kv_bits=bits)
        self.plan = plan_build(request)
        table = export_one(self.plan, "denoiser", folder)
        model = run_passes(ir.load(folder / table.file), compiler_passes(self.plan, "denoiser", table))
        write_uses(folder, marked_nodes(model, PLUGINS.values()))
        ir.save(model, folder / "passed.onnx")
        self.ranges = shape_ranges(self.plan, with_ring(table, self.plan.fixed_ring), self.plan.profiles[0])

    def build(self, capability):
        output, graph = self.folder / f"{capability}.engine", self.folder / "passed.onnx"
        job = EngineJob("denoiser", "tensorrt_rtx", graph, self.plan.weights, output, capability, (self.ranges,))
        return build_engine(job, SilentProgress(), stage="engine")

    def scratch(self, capability):
        attributes = {**PLUGINS[NAME].attributes, "bits": self.bits, "head_dim": 64}
        chunk, ring = (1, 6, 3 * 64, 64), (2, 6, self.plan.fixed_ring, 8 * self.bits)
        return PLUGINS[NAME].kernel.workspace([chunk, chunk, chunk, ring], attributes, capability)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("coded")
    return [Prepared(root / str(bits), bits) for bits in (4, 8)]


def test_a_ring_of_pages_is_smaller_and_updated_in_place(tmp_path, monkeypatch):
    """Six of twelve frames; the table of pages is a state beside the others."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "pruned.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("RTGEN_CONFIGS", str(tmp_path))
    pruned = Prepared(tmp_path / "pruned", 4, "pruned")
    assert pruned.plan.model.cache.window == 12 and pruned.plan.fixed_ring == 6 * 64 + 12
    result = pruned.build("8.9")
    assert result.plugins == {NAME: LAYERS} and NAME.encode() in result.path.read_bytes()
    attributes = {**PLUGINS[NAME].attributes, "keep": 0.5, "pool": 12, "head_dim": 64}
    chunk = (1, 6, 3 * 64, 64)
    scratch = PLUGINS[NAME].kernel.workspace([chunk, chunk, chunk, (2, 6, 6 * 64 + 12, 32)], attributes, "8.9")
    assert result.activation_bytes >= scratch


def test_one_set_of_kernels_serves_all_layers(prepared):
    for each in prepared:
        attention, ring = sources(each.folder, "8.9")
        assert attention.name.startswith(f"kv_cache_attention-bits{each.bits}-head_dim64")
        assert ring.name.startswith(f"kv_cache_ring-bits{each.bits}-head_dim64")


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0"])
def test_every_layer_attends_through_the_plugin_and_no_ring_is_copied(prepared, capability):
    results = [each.build(capability) for each in prepared]
    for result in results:
        assert result.plugins == {NAME: LAYERS} and NAME.encode() in result.path.read_bytes()
    # A ring that is copied would be among the activations, and is twice as large with 8 bits.
    rest = [result.activation_bytes - each.scratch(capability) for result, each in zip(results, prepared, strict=True)]
    assert rest[0] == rest[1] >= 0
