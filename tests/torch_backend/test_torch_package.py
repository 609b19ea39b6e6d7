"""What a torch package holds, when it is built, and what is refused."""

import json
import shutil
from importlib import metadata

import pytest

torch = pytest.importorskip("torch")

from rtgen.build import plan as plan_module  # noqa: E402
from rtgen.build.plan import plan_build  # noqa: E402
from rtgen.build.request import BuildRequest  # noqa: E402
from rtgen.build.walk import build, package_key  # noqa: E402
from rtgen.engine import compilers, trt  # noqa: E402
from rtgen.engine.manifest import StateEntry  # noqa: E402
from rtgen.engine.package import open_package, read_manifest, write_manifest  # noqa: E402
from rtgen.errors import (  # noqa: E402
    CheckpointError,
    MemoryPlanError,
    MissingDependencyError,
    NoGpuError,
    PackageInvalidError,
    RtgenError,
    UsageError,
)
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.backends import open_backend  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from rtgen.torch_backend.description import FILE_NAME  # noqa: E402
from tests.torch_backend.packages import torch_package  # noqa: E402


@pytest.fixture
def copied(tiny, tmp_path):
    """A torch package that a test may change."""
    return shutil.copytree(torch_package(tiny), tmp_path / "package")


def rewritten(folder, change):
    """The package with another ``model.json`` and a manifest that fits its files."""
    path = folder / FILE_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    write_manifest(folder, read_manifest(folder))
    return folder


def test_a_package_holds_weights_as_they_are_stored_and_nothing_to_execute(tiny):
    package = open_package(torch_package(tiny))
    manifest = package.manifest
    assert {name.rpartition(".")[2] for name in manifest.files} == {"safetensors", "json"}
    assert all(part.file == FILE_NAME for part in manifest.components.values())
    for part in manifest.components.values():
        for name in part.weights:
            assert package.file(name).read_bytes() == (tiny.weights / name).read_bytes()
    assert str(tiny.weights) not in package.file(FILE_NAME).read_text(encoding="utf-8")
    assert (manifest.compiler.name, manifest.compiler.version) == ("torch", metadata.version("torch"))
    assert {state.update for part in manifest.components.values() for state in part.states} == {"in_place"}


def test_its_memory_plan_counts_numbers_in_the_precision_and_what_passes_make(tiny):
    memory = read_manifest(torch_package(tiny)).memory_plan
    modules = tiny.modules().values()
    assert memory.weights == 4 * sum(value.numel() for module in modules for value in module.parameters())
    height, width = 64, 64  # of the greatest frames
    pixels = 12 * height * width
    assert 4 * 8 * pixels < memory.activations < 4 * 8 * pixels * 8  # eight channels of whole frames, a few times


def test_the_key_is_another_than_that_of_graphs_and_stays(tiny):
    keys = [package_key(tiny.request(backend=name)) for name in (None, "onnxruntime", "torch", "torch")]
    assert keys[0] == keys[1] != keys[2] == keys[3] == torch_package(tiny).name


def test_a_gpu_package_is_built_without_the_gpu(tiny, monkeypatch):
    monkeypatch.setattr(trt, "installed_version", lambda flavour: None)
    manifest = build(tiny.request("h200", recipe="fp16"), SilentProgress()).manifest
    assert (manifest.compiler.name, manifest.target.compute_capability) == ("torch", "9.0")
    rings = [tensor for tensor in manifest.components["denoiser"].inputs if "cache" in tensor.name]
    assert {tensor.dtype for tensor in rings} == {"float16"}
    assert manifest.memory_plan.context > 0


def test_tensorrt_comes_first_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(trt, "installed_version", lambda flavour: "10.14")
    monkeypatch.setattr(plan_module, "installed_version", lambda flavour: "10.14")
    with pytest.raises(NoGpuError, match="compiles on the GPU itself") as caught:
        plan_build(BuildRequest("h100", recipe="fp16"))
    assert "--backend torch" in caught.value.hint
    assert plan_build(BuildRequest("h100", recipe="fp16", backend="torch")).gpu.compiler == "torch"


def test_without_torch_and_tensorrt_both_are_named(monkeypatch):
    monkeypatch.setattr(compilers, "installed_version", lambda compiler: None)
    monkeypatch.setattr(plan_module, "installed_version", lambda compiler: None)
    with pytest.raises(MissingDependencyError, match=r"h100 needs TensorRT or torch.*9\.0") as caught:
        plan_build(BuildRequest("h100", recipe="fp16"))
    assert caught.value.exit_code == 3 and "rtgen[compile]" in caught.value.hint
    with pytest.raises(MissingDependencyError, match="torch, which is not installed"):
        plan_build(BuildRequest("h100", recipe="fp16", backend="torch"))


def test_a_package_does_not_open_without_torch(tiny, monkeypatch):
    package = open_package(torch_package(tiny))
    monkeypatch.setattr(compilers, "installed_version", lambda compiler: None)
    with pytest.raises(MissingDependencyError, match="cpu runs with torch, which is not installed") as caught:
        open_backend(package)
    assert caught.value.exit_code == 3 and "pip install" in caught.value.hint


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (BuildRequest("rtx4090", backend="onnxruntime"), "onnxruntime does not serve rtx4090"),
        (BuildRequest("cpu", recipe="int8-cpu", backend="torch"), "int8-cpu.*cpu uses torch"),
        (BuildRequest("h100", recipe="fp32", backend="torch"), "fp32.*for processors"),
    ],
)
def test_what_torch_cannot_do_is_refused_before_any_work(request_, match):
    with pytest.raises(UsageError, match=match):
        plan_build(request_)


def drop_a_layer(content):
    content["model"]["denoiser"]["layers"] = 1


def widen(content):
    content["model"]["denoiser"]["ffn_dim"] = 128


def without_end(content):
    content["model"]["denoiser"]["layers"] = 10**9


def other_window(content):
    content["model"]["cache"]["window"] = 12


def executable(content):
    content["code"] = "import os"


def another_format(content):
    layer = {"name": "blocks.0.self_attn.q.weight", "weights": "fp4", "activations": "fp4", "block": 16}
    content["layers"] = [layer]


def no_matrix(content):
    content["layers"] = [{"name": "blocks.9.self_attn.q.weight", "weights": "fp8", "activations": "fp8"}]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop_a_layer, "disagree about the denoiser's tensors"),
        (widen, "do not fit the denoiser"),
        (without_end, "more than 1000 layers"),
        (other_window, "disagree about window"),
        (executable, "'code'"),
        (another_format, "no fp4 weights"),
        (no_matrix, "no matrix of the denoiser"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copied, change, match):
    with pytest.raises((PackageInvalidError, CheckpointError), match=match):
        Pipeline.open(rewritten(copied, change))


@pytest.mark.parametrize("make", ["pickle", "huge header"])
def test_only_safetensors_are_read(copied, make):
    victim = copied / "denoiser.0.safetensors"
    if make == "pickle":
        torch.save({"x": torch.zeros(2)}, victim)
    else:
        victim.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    write_manifest(copied, read_manifest(copied))
    with pytest.raises(RtgenError, match="not a safetensors file"):
        Pipeline.open(copied)


def test_a_manifest_with_tables_of_its_own_is_refused(copied):
    manifest = read_manifest(copied)
    decoder = manifest.components["decoder"]
    swapped = tuple(StateEntry(input=s.input, output=s.output, update="swap") for s in decoder.states)
    parts = {**manifest.components, "decoder": decoder.model_copy(update={"states": swapped})}
    write_manifest(copied, manifest.model_copy(update={"components": parts}))
    with pytest.raises(PackageInvalidError, match="disagree about the decoder's tensors"):
        Pipeline.open(copied)


def test_a_size_that_memory_cannot_hold_is_an_error_with_a_hint(tiny):
    with Pipeline.open(torch_package(tiny)) as pipeline:
        session = pipeline.backend.open("denoiser")
        profile = pipeline.manifest.profiles[0].model_copy(update={"max": (1 << 24, 1 << 24)})
        session._manifest = pipeline.manifest.model_copy(update={"profiles": (profile,)})
        with pytest.raises(MemoryPlanError, match="too little free memory"):
            session.allocate({"rows": 1 << 18, "columns": 1 << 18})
