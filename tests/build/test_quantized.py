"""Recipes with a ``[quantization]`` section: stages of their own, and weights that lie beside the graphs."""

import os
import shutil

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
from rtgen.errors import ConfigError, MissingDependencyError, PromptError, UsageError
from rtgen.progress import SilentProgress
from rtgen.quantize.result import read_result
from rtgen.runtime.pipeline import Pipeline
from rtgen.store.store import Store

QUIET = SilentProgress()
needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
RECIPE = """
name = "small"
title = "For the processor, so that tests can run it"
precision = "float32"
compilers = ["onnxruntime"]
[quantization]
algorithm = "none"
exclude = ["head.*"]
[quantization.weights]
format = "int4"
block = 64
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
    assert cached(built) == {"codes": False, "export": can_link, "quantize": False, "graphs": False, "engines": False}
    seen = [(fraction, name) for stage, fraction, name in recorder.updates if stage == "codes"]
    assert seen[-1] == (1.0, "") and any(name.startswith("blocks.1.") for _, name in seen)

    manifest = open_package(built.package).manifest
    assert manifest.components["denoiser"].weights == ("denoiser.quantized.safetensors",)
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


@pytest.mark.parametrize(("gpu", "reason"), [("cpu", "uses onnxruntime"), ("rtx2080ti", "12.0, but rtx2080ti has 7.5")])
def test_a_gpu_that_cannot_run_it_is_refused_before_any_work(tiny, tmp_path, gpu, reason):
    with pytest.raises(UsageError, match=reason):
        build(tiny.request(gpu, recipe="int4-weights", store=tmp_path / "store"), QUIET)
    assert not (tmp_path / "store").exists() or not Store(tmp_path / "store").stages()


def test_keys_follow_the_section_and_the_export_does_not(tiny, small_recipe, monkeypatch):
    def keys():
        found = plan_build(tiny.request(recipe="small"))
        return found.export_key, found.codes_key, found.quantize_key, found.graphs_key, found.package_key

    small_recipe()
    before = keys()
    for change in (('["head.*"]', '["head.*", "time_*"]'), ("block = 64", "block = 32")):
        small_recipe(*change)
        after = keys()
        assert after[0] == before[0] and not set(after[1:]) & set(before[1:])
    small_recipe("For the", "Meant for the")
    assert keys() == before
    monkeypatch.setattr(plan, "quantizer_sources", lambda: "0" * 64)
    assert keys()[0] == before[0] and not set(keys()[1:]) & set(before[1:])
    without = plan_build(tiny.request())
    assert without.export_key == before[0] and without.graphs_key != before[2]


CALIBRATED = """
name = "calibrated"
title = "Small and quick to calibrate, for the processor"
precision = "float32"
compilers = ["onnxruntime"]
[quantization]
algorithm = "awq"
[quantization.weights]
format = "int4"
block = 64
"""


@pytest.fixture
def calibrated(tiny, tmp_path, monkeypatch):
    """Writes the recipe ``calibrated``, the model with few calibration streams, and files of prompts."""
    configs = tmp_path / "configs"
    for folder in ("models", "recipes", "calibration"):
        (configs / folder).mkdir(parents=True)
    model = (tiny.configs / "models" / "tiny.toml").read_text(encoding="utf-8")
    section = "[calibration]\nprompts = 'kites'\nchunks = [0, 3]\n"
    (configs / "models" / "tiny.toml").write_text(model + section, encoding="utf-8")
    (configs / "recipes" / "calibrated.toml").write_text(CALIBRATED, encoding="utf-8")
    (configs / "calibration" / "kites.txt").write_text("a red kite\na blue kite\n", encoding="utf-8")
    monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join((str(configs), str(tiny.configs))))
    return configs


def test_a_calibrated_recipe_records_streams_once_for_all_recipes(tiny, tiny_built, calibrated):
    pytest.importorskip("modelopt")
    tiny_built("tiny")
    recorder = Recorder()
    built = build(tiny.request(recipe="calibrated"), recorder)
    assert cached(built) == {
        "calibration": False, "codes": False, "export": True, "quantize": False, "graphs": False, "engines": False,
    }  # fmt: skip
    details = [detail for stage, _, detail in recorder.updates if stage == "calibration"]
    assert "stream 2 of 2, chunk 4 of 4" in details
    plan_ = plan_build(tiny.request(recipe="calibrated"))
    result = read_result(plan_.store.stage("quantize", plan_.quantize_key, pytest.fail))
    assert result.calibration == plan_.calibration_key
    with Pipeline.open(built.package) as pipeline:
        frames = next(pipeline.stream("a red kite"))
    with Pipeline.open(tiny_built("tiny").package) as pipeline:
        exact = next(pipeline.stream("a red kite"))
    assert 0 < np.abs(frames.astype(float) - exact).mean() < 20

    (calibrated / "recipes" / "other.toml").write_text(
        CALIBRATED.replace("calibrated", "other").replace("block = 64", "block = 32"), encoding="utf-8"
    )
    other = build(tiny.request(recipe="other"), QUIET)
    assert (cached(other)["calibration"], cached(other)["codes"]) == (True, False)


def test_prompts_of_ones_own_are_other_streams(tiny, calibrated, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("a green bird\n", encoding="utf-8")
    shipped = plan_build(tiny.request(recipe="calibrated"))
    mine = plan_build(tiny.request(recipe="calibrated", calibration_prompts=own))
    assert mine.calibration_prompts == ("a green bird",)
    assert mine.export_key == shipped.export_key
    for key in ("calibration_key", "codes_key", "quantize_key", "package_key"):
        assert getattr(mine, key) != getattr(shipped, key)
    own.write_text("# the same as shipped\na red kite\na blue kite\n", encoding="utf-8")
    again = plan_build(tiny.request(recipe="calibrated", calibration_prompts=own))
    assert again.package_key == shipped.package_key


def test_bad_prompts_are_refused_before_any_work(tiny, calibrated, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    store = tmp_path / "store"
    with pytest.raises(PromptError, match="holds no prompt"):
        build(tiny.request(recipe="calibrated", calibration_prompts=empty, store=store), QUIET)
    with pytest.raises(UsageError, match="'fp32' is not calibrated, so --calib-prompts would change nothing"):
        build(tiny.request(recipe="fp32", calibration_prompts=empty, store=store), QUIET)
    (calibrated / "calibration" / "kites.txt").unlink()
    with pytest.raises(ConfigError, match="names calibration prompts 'kites', which do not exist"):
        build(tiny.request(recipe="calibrated", store=store), QUIET)
    assert not store.exists()


def test_streams_do_not_depend_on_the_decoder_and_codes_depend_on_the_streams(tiny, calibrated, tmp_path, monkeypatch):
    def keys():
        found = plan_build(tiny.request(recipe="calibrated", weights=weights))
        return found.calibration_key, found.codes_key

    weights = tmp_path / "weights"
    shutil.copytree(tiny.weights, weights)
    before = keys()
    decoder = weights / "decoder.0.safetensors"
    decoder.write_bytes(decoder.read_bytes()[:-1] + b"x")
    assert keys() == before
    monkeypatch.setattr(plan, "quantizer_sources", lambda: "0" * 64)
    assert keys()[0] == before[0] and keys()[1] != before[1]
    monkeypatch.setattr(plan, "recorder_sources", lambda: "0" * 64)
    assert keys()[0] != before[0]
    (calibrated / "models" / "tiny.toml").write_text(
        (calibrated / "models" / "tiny.toml").read_text(encoding="utf-8").replace("[0, 3]", "[0, 2]"), encoding="utf-8"
    )
    after = keys()
    assert after[0] != before[0]


def test_a_recipe_that_needs_modelopt_is_refused_where_it_is_not_installed(tiny, tmp_path, monkeypatch):
    from importlib.metadata import PackageNotFoundError, version

    def without(name):
        if name == "nvidia-modelopt":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("rtgen.build.toolchain.version", without)
    store = tmp_path / "store"
    with pytest.raises(MissingDependencyError, match="needs nvidia-modelopt, which is not installed"):
        build(tiny.request("rtx4080-laptop", recipe="int8", store=store), QUIET)
    assert not store.exists() or not Store(store).stages()
    plan_build(tiny.request("rtx4080-laptop", recipe="int4", store=store, kv_bits=16)).package_key  # noqa: B018
