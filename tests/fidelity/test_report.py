"""The whole report on a tiny model, for the processor, where every graph can be executed."""

import json
import os
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.errors import UsageError
from rtgen.fidelity.report import ReportRequest, make_report, quantizing_recipes, reference_recipe
from rtgen.fidelity.saved import save_report
from rtgen.fidelity.studio import with_recipe
from rtgen.progress import SilentProgress
from tests.conftest import CONFIGS
from tests.fidelity.small_classifier import EVALUATION, write_classifier

RECIPE = """
name = "small"
title = "INT4 weights on the processor"
precision = "float32"
compilers = ["onnxruntime"]
[quantization]
algorithm = "none"
[quantization.weights]
format = "int4"
block = 64
[targets]
psnr_db = 90
"""
EVALUATED = """
[evaluation]
classifier = "classifier.onnx"
prompts = "evaluation.json"
"""


class Recorder(SilentProgress):
    def __init__(self):
        self.updates = []

    def update(self, stage, fraction, detail=""):
        self.updates.append((stage, fraction))


@pytest.fixture
def evaluated(tiny, tiny_built, tmp_path, monkeypatch):
    """The tiny model with prompts and a classifier, and a recipe for the processor."""
    tiny_built("tiny")  # its package is taken from the store
    configs, weights = tmp_path / "configs", tmp_path / "weights"
    for folder, name, text in (("models", "tiny", CONFIGS["tiny"] + EVALUATED), ("recipes", "small", RECIPE)):
        (configs / folder).mkdir(parents=True)
        (configs / folder / f"{name}.toml").write_text(text, encoding="utf-8")
    shutil.copytree(tiny.weights, weights)
    write_classifier(weights / "classifier.onnx")
    (weights / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join((str(configs), str(tiny.configs))))
    return tiny.request(weights=weights)


def test_a_report_holds_every_figure_and_the_page_shows_it(evaluated, tmp_path):
    progress = Recorder()
    finished = make_report(ReportRequest(evaluated, ("small",), clips=3, lengths=(0.75, 2.25)), progress)
    report, recipe = finished.report, finished.report.recipes[0]
    assert (report.precision, report.gpu, report.size) == ("float32", "cpu", (48, 48))
    assert [clip.asked["light"] for clip in report.clips] == ["bright", "dark", "dark"]
    assert [(m.seconds, m.clips, len(m.frame_psnr_db)) for m in recipe.measured] == [(0.75, 3, 12), (2.25, 1, 36)]
    for measured in recipe.measured:
        assert 5 < measured.psnr_db < 60 and 0 < measured.ssim < 1
        assert set(measured.attributes) == {"light", "change"} and measured.attribute_points is not None
    # The graph's passes are as far off as the simulation's.
    assert recipe.graph_snr_db == pytest.approx(recipe.velocity_snr_db, abs=0.1) and not recipe.graph_note
    assert 5 < recipe.velocity_snr_db < 40
    assert 4.2 < recipe.weight_bits < 4.3
    assert recipe.build.denoiser_bytes < report.reference_build.denoiser_bytes
    assert {layer.weights for layer in recipe.layers} == {"int4", "float"}
    assert (recipe.verdicts[0].kind, recipe.verdicts[0].reached) == ("psnr", False)
    assert "weights of the network not present" in report.lpips_note or "the package lpips" in report.lpips_note
    assert not report.attributes_note
    done = {stage for stage, fraction in progress.updates if fraction == 1.0}
    assert {"clips: FP32", "clips: small", "passes: small"} <= done

    saved = save_report(finished, tmp_path / "configs")
    assert json.loads(saved.data.read_text(encoding="utf-8"))["report_schema"] == "rtgen.fidelity/1"
    text = saved.page.read_text(encoding="utf-8")
    assert text.count("<video") == 2 and "INT4 weights on the processor" in text


def test_what_cannot_be_measured_leaves_its_reason(evaluated, tmp_path):
    (tmp_path / "weights" / "classifier.onnx").unlink()
    report = make_report(ReportRequest(evaluated, ("small",), clips=1, lengths=(0.75,)), SilentProgress()).report
    assert "classifier.onnx is not in the folder of the weights" in report.attributes_note
    assert report.recipes[0].measured[0].attribute_accuracy is None
    verdict = next(v for v in report.recipes[0].verdicts if v.kind == "attributes")
    assert verdict.reached is None and verdict.why == report.attributes_note


@pytest.mark.parametrize(
    ("recipes", "fields", "message"),
    [(("fp32",), {}, "compared with"), (("fp8",), {}, "fp8"), (("small",), {"clips": 0}, "at least one clip")],
)
def test_what_makes_no_report_is_refused_before_any_work(evaluated, monkeypatch, recipes, fields, message):
    def work(*arguments):
        raise AssertionError("work was done")

    monkeypatch.setattr("rtgen.fidelity.studio.build", work)
    with pytest.raises(UsageError, match=message):
        make_report(ReportRequest(evaluated, recipes, **fields), SilentProgress())


def test_recipes_are_those_that_the_target_can_run():
    from rtgen.config.load import load_gpu

    assert set(quantizing_recipes(load_gpu("rtx5090"))) >= {"int8", "fp8", "int4", "int4-awq", "nvfp4"}
    assert "nvfp4" not in quantizing_recipes(load_gpu("rtx4080-laptop"))
    assert reference_recipe(load_gpu("rtx4080-laptop")) == "fp16"
    assert reference_recipe(load_gpu("cpu")) == "fp32"


def test_prompts_go_to_the_recipes_that_are_calibrated(tiny_models, monkeypatch, tmp_path):
    """A decoder that computes on codes is, and the tiny decoder never does."""
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny_models["tiny"].configs))
    for model, kept in (("tiny", True), ("tiny-taehv", False)):
        request = tiny_models[model].request(calibration_prompts=tmp_path / "own.txt")
        assert (with_recipe(request, "int8-cpu").calibration_prompts is not None) == kept
        assert with_recipe(request, "fp32").calibration_prompts is None
