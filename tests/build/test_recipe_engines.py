"""Every recipe builds the bundled model's denoiser for every compute capability that it names.

Weights are rounded to nearest and activations have made-up scales, which changes numbers and no node.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx_ir as ir
from safetensors.numpy import load_file

from rtgen.build.engines import shape_ranges
from rtgen.build.graphs import compiler_passes, export_one
from rtgen.build.plan import plan_build
from rtgen.build.request import BuildRequest
from rtgen.config.load import list_recipes, load_recipe
from rtgen.engine import trt
from rtgen.engine.builder import EngineJob, build_engine
from rtgen.export.ring_states import with_ring
from rtgen.passes.base import run_passes
from rtgen.passes.linear_layers import linear_layers
from rtgen.progress import SilentProgress
from rtgen.quantize.graph import write_graph
from rtgen.quantize.selection import checkpoint_name, reasons_to_keep
from tests.engine.compiled_products import products
from tests.quantize.handmade import write_handmade

pytestmark = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

GPU, SIZE = "rtx4080-laptop", (128, 128)
DEFAULTS = {("int8", "8.9"), ("nvfp4", "12.0")}
"""What is built without ``-m slow``: each takes seconds."""
PAIRS = [
    pytest.param(name, capability, marks=[] if (name, capability) in DEFAULTS else [pytest.mark.slow])
    for name in list_recipes()
    if "tensorrt_rtx" in load_recipe(name).compilers
    for capability in load_recipe(name).compute_capabilities
    if trt.supports("tensorrt_rtx", capability)
]
BITS = {"int4": (4.0, 4.6), "int8": (7.9, 8.2), "fp8": (7.9, 8.2), "fp4": (4.4, 4.7)}
"""Of memory for each quantized weight, with its scales."""
CODES = {"int8": "int8", "fp8": "fp8_e4m3", "fp4": "fp4_e2m1"}


@dataclass
class Exported:
    """The denoiser as it is exported in half precision, and what has been made of it so far."""

    root: Path
    kv_bits: int

    def __post_init__(self):
        store = self.root / "store"
        self.plan = plan_build(BuildRequest(GPU, recipe="fp16", sizes=(SIZE,), store=store, kv_bits=self.kv_bits))
        (self.root / "export").mkdir()
        self.table = export_one(self.plan, "denoiser", self.root / "export")
        self.graph = self.root / "export" / self.table.file
        self.checkpoint = {}
        for name in self.table.weights:
            self.checkpoint |= load_file(self.plan.weights / name)
        self.quantized = cache(self._quantized)
        self.built = cache(self._built)

    def shapes(self):
        """Of the matrices, by their names in the checkpoint."""
        places = linear_layers(ir.load(self.graph).graph)
        return {checkpoint_name(name): place.shape for name, place in places.items()}

    def reasons(self, settings):
        """Why matrices stay; empty where they do not."""
        return reasons_to_keep(self.shapes(), settings)

    def _quantized(self, name):
        """The folder with a recipe's graph and weights, and how many weights have codes."""
        settings = load_recipe(name).quantization
        if settings is None:
            return self.graph.parent, self.plan.weights, 0
        folder = self.root / name
        folder.mkdir()
        reasons, shapes = self.reasons(settings), self.shapes()
        factors = {width: np.random.default_rng(width).uniform(0.5, 2, width) for _, width in shapes.values()}

        def choose(layer):
            return None if reasons[layer] else _choice(settings, factors[shapes[layer][1]].astype(np.float16))

        file, result, layers = write_handmade(folder, self.graph, self.checkpoint, choose)
        write_graph(self.graph, file, result, folder)
        return folder, folder, sum(layer.result.elements for layer in layers.values())

    def _built(self, name, capability):
        folder, weights, _ = self.quantized(name)
        passes = compiler_passes(self.plan, "denoiser", self.table)
        graph = self.root / f"{name}.onnx"
        ir.save(run_passes(ir.load(folder / self.table.file), passes), graph)
        ranges = shape_ranges(self.plan, with_ring(self.table, self.plan.fixed_ring), self.plan.profiles[0])
        output = self.root / f"{name}-{capability}.engine"
        job = EngineJob("denoiser", "tensorrt_rtx", graph, weights, output, capability, (ranges,))
        return build_engine(job, SilentProgress(), stage="engine")


def _choice(settings, factors):
    """What is made by hand for a layer that a recipe quantizes."""
    choice = {"weights": settings.weights.format}
    if settings.activations is not None:
        choice["activations"] = settings.activations.format
    if settings.algorithm in ("awq", "smoothquant", "svdquant"):
        choice["pre_scale"] = factors
    if settings.low_rank is not None:
        choice["rank"] = settings.low_rank.rank
    return choice


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """By the bits of the K/V ring."""
    return cache(lambda kv_bits: Exported(tmp_path_factory.mktemp("recipes"), kv_bits))


@pytest.mark.parametrize(("recipe", "capability"), PAIRS)
def test_a_recipe_builds_for_the_gpus_it_names(exported, recipe, capability):
    ring = load_recipe(recipe).kv_cache
    exported = exported(ring.bits)
    result = exported.built(recipe, capability)
    layers = exported.plan.model.denoiser.layers
    assert result.plugins.get("QuantizedKVCacheAttention", 0) == (layers if ring.is_coded else 0)
    settings = load_recipe(recipe).quantization
    if settings is None:
        return
    kind, (_, _, elements) = settings.weights.format, exported.quantized(recipe)
    quantized = [shape for name, shape in exported.shapes().items() if not exported.reasons(settings)[name]]
    plain = sum(np.size(value) for value in exported.checkpoint.values()) - elements
    if settings.low_rank is not None:
        plain += sum(sum(shape) * settings.low_rank.rank for shape in quantized)
    low, high = BITS[kind]
    assert low <= 8 * (result.weights_bytes - 2 * plain) / elements <= high

    if settings.activations is not None and settings.activations.format == "int4":
        linear = result.plugins.get("W4A4Linear", 0) + result.plugins.get("W4A4LinearGated", 0)
        assert linear == len(quantized)
        return
    if kind in CODES:
        found = [product for product in products(result.path) if product.factors[1] == CODES[kind]]
        assert {product.factors[0] for product in found} <= {CODES[kind], None}
    else:
        found = [product for product in products(result.path) if "int4" in product.reads]
    # Keys and values of the prompt are one FP4 product for all blocks. Plugins part the program: behind the first one,
    # those of later blocks multiply what comes across in half precision.
    parted = 2 * (layers - 1) if ring.is_coded and kind == "fp4" else 0
    assert sum(len(product.nodes) for product in found) >= len(quantized) - parted
