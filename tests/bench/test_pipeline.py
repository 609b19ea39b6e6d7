"""``rtgen bench pipeline``: the baseline computes what packages compute, and the figures are those of each process."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch

from rtgen.bench import configurations, eager, pipeline
from rtgen.bench.configurations import BASELINE, CONFIGURATIONS, open_eager, prepare_eager
from rtgen.bench.memory import peak_resident_bytes
from rtgen.bench.passes import WatchedBackend
from rtgen.bench.pipeline import PipelineFigures, measure
from rtgen.bench.random_model import has_weights, random_model, toml
from rtgen.bench.result import Measurement
from rtgen.bench.seat import Case, Seat
from rtgen.build.chosen_prompts import calibration_prompts
from rtgen.build.request import BuildRequest
from rtgen.cli.main import run
from rtgen.config.load import load_model, load_recipe
from rtgen.errors import NoGpuError, PackageInvalidError, UsageError
from rtgen.models.registry import COMPONENTS, load
from rtgen.progress import SilentProgress
from rtgen.runtime.backends import open_backend
from rtgen.runtime.pipeline import Pipeline

PROMPT = "a red kite drifts right over the sea"
SIZE = (48, 48)


class Notes(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def models(tiny_models, monkeypatch):
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny_models["tiny"].configs))
    return tiny_models


@pytest.mark.parametrize("name", ["tiny", "tiny-wan", "tiny-taehv", "tiny-host"])
def test_eager_torch_makes_the_frames_of_the_package(models, tiny_built, monkeypatch, name):
    monkeypatch.setattr(eager, "thread_count", lambda: 1)  # it is torch's in this process from then on
    request = models[name].request()
    path = prepare_eager(request, SIZE, SilentProgress())
    baseline = Pipeline(*open_eager(request, path))
    with baseline, Pipeline.open(tiny_built(name).package) as package:
        for size, frames in (((48, 64), 40), ((32, 48), 12)):  # rings and states are made anew
            one, other = (list(each.stream(PROMPT, seed=3, frames=frames, size=size)) for each in (baseline, package))
            assert [chunk.shape for chunk in one] == [chunk.shape for chunk in other]
            difference = np.abs(np.concatenate(one).astype(int) - np.concatenate(other))
            assert difference.max() <= 2 and difference.mean() < 0.05


def test_passes_are_told_apart_and_only_while_somebody_asks(tiny_built):
    package = Pipeline.open(tiny_built("tiny").package).package
    watched = WatchedBackend(open_backend(package))
    with Pipeline(package, watched) as pipeline:
        expected = list(pipeline.stream(PROMPT, frames=24))
        assert not watched.times.denoise_s and not watched.times.clean_s
        watched.times.enabled = True
        found = list(pipeline.stream(PROMPT, frames=24))
        assert len(watched.times.denoise_s) == 2 * len(pipeline.manifest.model.sigmas)
        assert len(watched.times.clean_s) == 2 and min(watched.times.denoise_s) > 0
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_every_configuration_is_measured_in_a_process_of_its_own(models, tiny_built):
    tiny_built("tiny")
    request = models["tiny"].request(recipe=None)
    figures = measure(request, ["fp32"], [], SIZE, 1.5, 2, SilentProgress())
    baseline, package = figures.cases
    assert (baseline["name"], package["name"]) == ("eager", "package fp32") and not figures.random_weights
    assert [len(case["played"]) for case in figures.cases] == [2, 2]
    found = {result.name.partition(": ")[2]: result for result in figures.results}
    assert found["first chunk beside the baseline's"].value > 45
    for stage in ("denoise pass", "clean pass", "decode a chunk", "chunk, stage after stage"):
        figure = found[stage]
        assert figure.value > 0 and figure.ratio == pytest.approx(figure.baseline / figure.value)
    rate = found["end to end"]
    assert rate.ratio == pytest.approx(rate.value / rate.baseline) and rate.value <= found["denoising alone"].value
    # torch is in the baseline's process alone
    memory = found["peak memory of the process"]
    assert 0 < memory.value < memory.baseline and memory.value < peak_resident_bytes() / 2**30
    assert "peak GPU memory" not in found and "GPU power" not in found
    json.dumps(figures.cases)


@pytest.mark.slow  # exports a model
def test_a_model_without_weights_gets_random_ones(models):
    notes = Notes()
    figures = measure(BuildRequest("cpu", "tiny-wan"), ["fp32"], [], SIZE, 1, 1, notes)
    assert figures.random_weights and "no weights of tiny-wan" in notes.notes[0]
    assert figures.results[-1].unit == "dB" and figures.results[-1].value > 45


def test_random_models_have_the_size_of_the_real_ones_but_for_the_text_encoder(models):
    config = load_model("tiny-wan")
    assert not has_weights(BuildRequest("cpu", "tiny-wan")) and has_weights(models["tiny-wan"].request())
    with random_model(config) as (weights, store):
        changed = load_model("tiny-wan")
        assert (changed.denoiser, changed.autoencoder, changed.cache) == (
            config.denoiser, config.autoencoder, config.cache,
        )  # fmt: skip
        assert changed.text_encoder.layers == 1 and changed.text_encoder.dim == config.text_encoder.dim
        assert changed.calibration.chunks == (0,)
        assert calibration_prompts(None, changed, load_recipe("fp8")) == config.example_prompts[:1]
        assert has_weights(BuildRequest("cpu", "tiny-wan", weights=weights, store=store))
        for component in COMPONENTS:
            module, _ = load(component, changed, weights, "float32")
            values = torch.cat([value.flatten() for value in module.parameters()])
            assert float(values.std()) > 0.01 and bool(values.isfinite().all())
    assert load_model("tiny-wan") == config and not weights.exists()


def test_toml_holds_what_configs_hold():
    import tomllib

    values = {"a": 'tick " and \\ and ä', "b": [1, 2.5, 1e-6], "c": {"d": True, "e": [{"f": (1, 2)}, {}]}, "g": []}
    assert tomllib.loads(toml(values)) == json.loads(json.dumps(values))


def test_what_this_machine_cannot_run_is_left_out_with_the_reason(models, monkeypatch):
    def refuse(request, size, progress):
        raise NoGpuError("there is none")

    there = CONFIGURATIONS[BASELINE]
    absent = configurations.Configuration(refuse, there.open)
    request = models["tiny"].request()
    monkeypatch.setattr(pipeline, "CONFIGURATIONS", {BASELINE: there, "other": there, "package": absent})
    cases, skipped = pipeline._cases(request, ["fp32", "fp16"], ["other", "package"], SIZE, SilentProgress())
    assert [case.name for case in cases] == ["eager", "other"]
    assert skipped == {"package fp32": "there is none", "package fp16": "there is none"}
    with pytest.raises(NoGpuError):
        pipeline._cases(request, [], ["package"], SIZE, SilentProgress())


def test_an_error_in_the_process_is_raised_here(models, tmp_path):
    case = Case("package fp32", "package", models["tiny"].request(), tmp_path / "none", SIZE, PROMPT, 0)
    with pytest.raises(PackageInvalidError, match="package fp32: ") as raised:
        Seat(case, tmp_path)
    assert raised.value.hint


@pytest.fixture
def measured(monkeypatch):
    asked = []
    results = [
        Measurement("package fp32: end to end", 12.0, "FPS", 5.0, 2.4, "eager torch"),
        Measurement("package fp32: first chunk beside the baseline's", 90.0, "dB", None, None, "PSNR"),
    ]

    def fake(*arguments):
        asked.append(arguments)
        return PipelineFigures(results, [{"name": "eager"}], {"package fp8": "no GPU"}, False)

    monkeypatch.setattr(pipeline, "measure", fake)
    return asked


def test_the_command_writes_figures_and_a_chart(measured, tmp_path, capsys):
    file = tmp_path / "pipeline.json"
    line = ["bench", "pipeline", "--gpu", "cpu", "--recipe", "fp32", "--size", "96x96", "--seconds", "2.5"]
    assert run([*line, "--repeats", "4", "--report", str(file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    request, recipes, only, size, seconds, repeats, _ = measured[0]
    assert (request.gpu, request.model, recipes, only) == ("cpu", "postcard", ("fp32",), ())
    assert (size, seconds, repeats) == ((96, 96), 2.5, 4)
    assert data["results"][0]["ratio"] == 2.4 and data["skipped"] == {"package fp8": "no GPU"}
    assert data["setting"]["size"] == [96, 96] and data["machine"]["host"]
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["cases"] == [{"name": "eager"}] and "--size 96x96" in report["command"]
    chart = ElementTree.fromstring(file.with_suffix(".svg").read_text(encoding="utf-8"))
    assert len([element for element in chart.iter() if element.get("class") == "bar"]) == 1
    assert run(line) == 0
    told = capsys.readouterr()
    assert "2.40x" in told.out and "left out: package fp8: no GPU" in told.err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--only", "tensorflow"), "one of: package"),
        (("--report", "a.txt"), "pipeline.json"),
        (("--size", "9x9"), "is near"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(measured, capsys, options, hint):
    assert run(["bench", "pipeline", "--gpu", "cpu", *options]) == 2
    assert hint in capsys.readouterr().err and not measured


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="eager"):
        pipeline.chosen_names(["eager"])
