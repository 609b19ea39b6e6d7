"""Quantized recipes from calibration to frames, on the processor: FP8 products and 4-bit layers in the modules."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("modelopt")

from rtgen.engine.package import open_package  # noqa: E402
from rtgen.runtime.backends import open_backend  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from rtgen.torch_backend.description import FILE_NAME, read_description  # noqa: E402
from tests.torch_backend.packages import torch_package  # noqa: E402

PROMPT = "a red kite drifts right over the sea"

pytestmark = pytest.mark.slow  # calibration


@pytest.fixture
def calibrated(tiny, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\na green bird over mountains at night\n", encoding="utf-8")
    return lambda recipe, **fields: torch_package(tiny, recipe=recipe, calibration_prompts=prompts, **fields)


def frames_of(package):
    with Pipeline.open(package) as pipeline:
        return np.concatenate(list(pipeline.stream(PROMPT, seed=2, frames=36))).astype(int)


def test_half_precision_frames_are_near_those_of_single_precision(tiny):
    half, single = frames_of(torch_package(tiny, recipe="fp16")), frames_of(torch_package(tiny))
    assert 0 < np.abs(half - single).mean() < 1


@pytest.mark.parametrize(("recipe", "fields", "kind", "limit"), [
    ("fp8", {}, ("fp8", "fp8"), 12),
    ("int4", {"kv_bits": 8}, ("int4", "int4"), 25),
])  # fmt: skip
def test_quantized_packages_play(calibrated, tiny, recipe, fields, kind, limit):
    path = calibrated(recipe, **fields)
    package = open_package(path)
    layers = read_description(package.file(FILE_NAME), package.manifest.model).layers
    assert layers and {(layer.weights, layer.activations) for layer in layers} == {kind}
    backend = open_backend(package)
    module = backend.open("denoiser")._program._pass.model
    assert type(module.get_submodule(layers[0].name.removesuffix(".weight"))).__name__ in ("Fp8Linear", "W4A4Module")
    backend.close()
    exact, found = frames_of(torch_package(tiny, recipe="fp16")), frames_of(path)
    assert 0 < np.abs(found - exact).mean() < limit
