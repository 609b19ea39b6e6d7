"""Recipes with a ``[weights]`` section: a stage of their own, and weights that lie beside the graphs."""

import os

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build import plan, weight_places
from rtgen.build.plan import plan_build
from rtgen.build.reference import ReferenceBackend
from rtgen.build.walk import build, graphs_and_weights
from rtgen.engine import trt
from rtgen.engine.package import open_package
from rtgen.errors import UsageError
from rtgen.progress import SilentProgress
from rtgen.runtime.pipeline import Pipeline
from rtgen.store.store import Store

QUIET = SilentProgress()
needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
RECIPE = """
name = "small"
title = "For the processor, so that tests can run it"
precision = "float32"
compilers = ["onnxruntime"]
[weights]
exclude = ["head.*"]
"""


@pytest.fixture
def small_recipe(tiny, tmp_path, monkeypatch):
    """Writes the recipe ``small``, with changes."""

    def write(before="", after=""):
        assert before in RECIPE
        (tmp_path / "configs" / "recipes").mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / "recipes" / "small.toml").write_text(RECIPE.replace(before, after), encoding="utf-8")
        monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join((str(tmp_path / "configs"), str(tiny.configs))))

    return write


@pytest.fixture(scope="module")
def half_store(tmp_path_factory):
    """A store for what is built in half precision; other tests count on the shared one not having it."""
    return tmp_path_factory.mktemp("half")


class Recorder(SilentProgress):
    def __init__(self):
        self.updates = []

    def update(self, stage, fraction, detail=""):
        self.updates.append((stage, fraction, detail))


def cached(outcome):
    return {stage.name: stage.cached for stage in outcome.stages}


def denoised(graphs, weights):
    """One pass of the denoiser of ``graphs`` on noise."""
    session = ReferenceBackend(graphs, weights).open("denoiser")
    session.allocate({"rows": 3, "columns": 3, "ring": 9 * 9})
    generator = np.random.default_rng(0)
    for tensor in session.component.inputs:
        value = session._inputs[tensor.name]
        if tensor.name in ("noise", "context"):
            session.write(tensor.name, generator.standard_normal(value.shape).astype(value.dtype))
        elif tensor.name in ("sigma", "valid_length"):
            session.write(tensor.name, np.full_like(value, 1 if tensor.name == "sigma" else 27))
    session.run()
    return session.read("denoised").astype(np.float64)


@pytest.mark.parametrize("can_link", [True, False])
def test_a_package_for_the_processor_carries_the_quantized_file_and_runs(
    tiny, tiny_built, small_recipe, tmp_path, monkeypatch, can_link
):
    if not can_link:
        monkeypatch.setattr(weight_places.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    tiny_built("tiny")  # the export is shared with fp32
    small_recipe()
    store = tmp_path / "store" if not can_link else tiny.store
    recorder = Recorder()
    built = build(tiny.request(recipe="small", store=store), recorder)
    assert cached(built) == {"export": can_link, "quantize": False, "graphs": False, "engines": False}
    seen = [(fraction, name) for stage, fraction, name in recorder.updates if stage == "quantize"]
    assert seen[-1] == (1.0, "") and any(name.startswith("blocks.1.") for _, name in seen)

    manifest = open_package(built.package).manifest
    assert manifest.components["denoiser"].weights == ("denoiser.int4.safetensors",)
    assert "denoiser.0.safetensors" not in manifest.files and "decoder.0.safetensors" in manifest.files
    assert all(stage.problem is None for stage in Store(store).stages())
    plain = open_package(tiny_built("tiny").package).manifest
    assert manifest.memory_plan.weights < plain.memory_plan.weights
    with Pipeline.open(built.package) as pipeline:
        frames = next(pipeline.stream("a red kite"))
    with Pipeline.open(tiny_built("tiny").package) as pipeline:
        assert (frames != next(pipeline.stream("a red kite"))).any()


def test_a_quantized_pass_in_half_precision_stays_near_the_exact_one(tiny, half_store):
    found = [
        denoised(*graphs_and_weights(tiny.request("rtx4080-laptop", recipe=recipe, store=half_store), QUIET))
        for recipe in ("fp16", "int4-weights")
    ]
    exact, quantized = found
    assert 0 < np.linalg.norm(quantized - exact) < 0.3 * np.linalg.norm(exact)


@needs_rtx
def test_the_shipped_recipe_builds_engines(tiny, half_store):
    built = build(tiny.request("rtx4080-laptop", recipe="int4-weights", store=half_store), QUIET)
    manifest = open_package(built.package).manifest
    assert manifest.recipe == "int4-weights"
    assert all(
        component.file.endswith(".engine") and not component.weights for component in manifest.components.values()
    )
    assert not any(name.endswith(".safetensors") for name in manifest.files)


@pytest.mark.parametrize(("gpu", "reason"), [("cpu", "uses onnxruntime"), ("rtx2080ti", "8.6, but rtx2080ti has 7.5")])
def test_a_gpu_that_cannot_run_it_is_refused_before_any_work(tiny, tmp_path, gpu, reason):
    with pytest.raises(UsageError, match=reason):
        build(tiny.request(gpu, recipe="int4-weights", store=tmp_path / "store"), QUIET)
    assert not (tmp_path / "store").exists() or not Store(tmp_path / "store").stages()


def test_keys_follow_the_section_and_the_export_does_not(tiny, small_recipe, monkeypatch):
    def keys():
        found = plan_build(tiny.request(recipe="small"))
        return found.export_key, found.quantize_key, found.graphs_key, found.package_key

    small_recipe()
    before = keys()
    for change in (('["head.*"]', '["head.*", "time_*"]'), ("[weights]", "[weights]\nblock = 128")):
        small_recipe(*change)
        after = keys()
        assert after[0] == before[0] and not set(after[1:]) & set(before[1:])
    small_recipe("For the", "Meant for the")
    assert keys() == before
    monkeypatch.setattr(plan, "quantizer_sources", lambda: "0" * 64)
    assert keys()[0] == before[0] and not set(keys()[1:]) & set(before[1:])
    without = plan_build(tiny.request())
    assert without.export_key == before[0] and without.graphs_key != before[2]
