"""From a request to a package: what is made, what is found again, and what is refused."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from safetensors.torch import load_file, save_file  # noqa: E402

from rtgen.build.walk import build  # noqa: E402
from rtgen.config.locate import data_directory  # noqa: E402
from rtgen.engine import builder, trt  # noqa: E402
from rtgen.engine.builder import EngineResult  # noqa: E402
from rtgen.engine.package import MANIFEST_NAME, open_package  # noqa: E402
from rtgen.errors import CheckpointError, MemoryPlanError, MissingDependencyError, SizeError  # noqa: E402
from rtgen.models.registry import load  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from rtgen.store.store import Store  # noqa: E402

QUIET = SilentProgress()
needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@pytest.fixture
def copied_weights(tiny, tmp_path):
    """A copy of the weights that a test may damage."""
    return Path(shutil.copytree(tiny.weights, tmp_path / "weights"))


def cached(outcome):
    return {stage.name: stage.cached for stage in outcome.stages}


def gpu_config(folder, name, based_on, **values):
    """A GPU config like a shipped one, with other values."""
    lines = (data_directory("configs") / "gpus" / f"{based_on}.toml").read_text(encoding="utf-8").splitlines()
    for key, value in ({"name": f'"{name}"'} | values).items():
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[place] = f"{key} = {value}"
    (folder / "gpus").mkdir(parents=True, exist_ok=True)
    (folder / "gpus" / f"{name}.toml").write_text("\n".join(lines), encoding="utf-8")


def test_the_package_verifies_and_names_what_it_was_made_of(tiny, tiny_built):
    built = tiny_built("tiny")
    assert not built.cached and cached(built) == {"export": False, "graphs": False, "engines": False}
    manifest = open_package(built.package).manifest
    assert manifest.key == built.key == built.package.name
    assert (manifest.model.name, manifest.target.gpu, manifest.recipe) == ("tiny", "cpu", "fp32")
    weights = {name for component in manifest.components.values() for name in component.weights}
    assert weights == {file.name for file in tiny.weights.glob("*.safetensors")}
    assert [package.key for package in Store(tiny.store).packages() if package.gpu == "cpu"].count(built.key) == 1


def test_a_second_build_finds_the_package_at_once_and_a_forced_one_repeats_its_bytes(tiny, tiny_built, tmp_path):
    built = tiny_built("tiny")
    content = (built.package / MANIFEST_NAME).read_bytes()
    again = build(tiny.request(), QUIET)
    assert again.cached and again.seconds < 2 and again.package == built.package and again.stages == ()
    assert (again.package / MANIFEST_NAME).read_bytes() == content

    store = Path(shutil.copytree(tiny.store, tmp_path / "store"))
    forced = build(tiny.request(store=store, force=True), QUIET)
    assert not forced.cached and cached(forced) == {"graphs": True, "engines": False}
    assert forced.package != built.package and (forced.package / MANIFEST_NAME).read_bytes() == content


def test_the_sizes_asked_for_are_those_the_package_serves(tiny, tiny_built):
    tiny_built("tiny")
    made = build(tiny.request(sizes=((32, 64),)), QUIET)
    assert cached(made) == {"graphs": True, "engines": False}
    assert made.manifest.model.default_size == (32, 64)
    with Pipeline.open(made.package) as pipeline:
        assert next(pipeline.stream("a red kite")).shape == (12, 32, 64, 3)
        with pytest.raises(SizeError, match="48x48"):
            pipeline.stream("a red kite", size=(48, 48))


@pytest.mark.parametrize(
    ("size", "near"),
    [((50, 48), "48x48"), ((64, 57), "64x64"), ((16, 48), "32x48"), ((8192, 48), "4096x48"), ((0, 48), "32x48")],
)
def test_a_size_off_the_grid_is_refused_with_the_nearest(tiny, size, near):
    with pytest.raises(SizeError, match=f"{size[0]}x{size[1]}") as refused:
        build(tiny.request(sizes=(size,)), QUIET)
    assert f"--size {near} " in refused.value.hint


def fake_engine(job, progress, *, stage):
    job.output.write_bytes(b"engine of " + job.name.encode())
    return EngineResult(job.output, job.output.stat().st_size, 1000, 2000, 0.0, 1, {}, ())


@needs_rtx
def test_rtx_engines_are_built_without_a_gpu_and_gpus_of_a_recipe_share_the_graphs(tiny, monkeypatch):
    built = build(tiny.request("rtx4080-laptop"), QUIET)
    assert cached(built) == {"export": False, "graphs": False, "engines": False}
    manifest = open_package(built.package).manifest
    assert {part.file for part in manifest.components.values()} == {
        "text_encoder.engine", "denoiser.engine", "decoder.engine",
    }  # fmt: skip
    assert all(manifest.files[part.file].size > 100_000 and not part.weights for part in manifest.components.values())
    (kernel,) = [name for name in manifest.files if name.startswith("kernels/")]  # of the decoder's attention
    assert kernel.startswith("kernels/attention_conv-channels32") and kernel.endswith(".cubin")
    assert b"AttentionConv" in (built.package / "decoder.engine").read_bytes()
    results = manifest.components["denoiser"].outputs[:3]  # what follows is the ring, in half precision
    assert [(result.name, result.dtype) for result in results] == [
        ("denoised", "float32"), ("noise_estimate", "float32"), ("change", "float32"),
    ]  # fmt: skip
    plan = manifest.memory_plan
    stored = sum(file.stat().st_size for file in tiny.weights.glob("*.safetensors"))
    tokens, heads, layers = 9 * 4 * 4, 2, 2
    assert plan.kv_ring == 2 * layers * heads * tokens * 32 * 2  # keys and values, float16
    assert plan.weights > 0.9 * stored and plan.activations > 0 and plan.decoder_state > 0
    assert plan.total < plan.vram == 12 << 30

    monkeypatch.setattr(builder, "build_engine", fake_engine)
    other = build(tiny.request("rtx4090"), QUIET)
    assert cached(other) == {"graphs": True, "engines": False} and other.key != built.key
    smaller = build(tiny.request("rtx4090", sizes=((48, 32),)), QUIET)  # another length of the ring
    assert cached(smaller) == {"export": True, "graphs": False, "engines": False}


@needs_rtx
def test_one_set_of_rtx_engines_has_a_profile_for_each_size_and_a_ring_for_the_greatest(tiny, monkeypatch):
    jobs, build_engine = {}, builder.build_engine

    def watched(job, progress, *, stage):
        jobs[job.name] = job
        return build_engine(job, progress, stage=stage)

    monkeypatch.setattr(builder, "build_engine", watched)
    built = build(tiny.request("rtx4080-laptop", sizes=((48, 64), (64, 48), (32, 48))), QUIET)
    assert [(profile.min, profile.opt, profile.max) for profile in built.manifest.profiles] == [
        ((32, 48), (32, 48), (32, 48)), ((32, 48), (48, 64), (48, 64)), ((32, 48), (64, 48), (64, 48)),
    ]  # fmt: skip
    assert built.manifest.model.default_size == (48, 48)  # it lies between
    assert jobs["text_encoder"].profiles == ()
    ranges = [profile["clean"] for profile in jobs["denoiser"].profiles]
    latents = [tuple(shape[3:] for shape in shapes) for shapes in ranges]
    assert latents == [((4, 6),) * 3, ((4, 6), (6, 8), (6, 8)), ((4, 6), (8, 6), (8, 6))]
    assert len(jobs["decoder"].profiles) == 3
    assert not any("cache" in name for profile in jobs["denoiser"].profiles for name in profile)  # of fixed length
    layers, heads, tokens = 2, 2, 9 * 3 * 4
    assert built.manifest.memory_plan.kv_ring == 2 * layers * heads * tokens * 32 * 2
    files = open_package(built.package).manifest.files
    assert all(files[f"{component}.engine"].size > 100_000 for component in jobs)


@pytest.mark.skipif(trt.installed_version("tensorrt") is not None, reason="tensorrt is installed")
def test_a_gpu_that_tensorrt_rtx_does_not_serve_is_refused_in_a_line(tiny):
    with pytest.raises(MissingDependencyError) as refused:
        build(tiny.request("h100", backend="tensorrt"), QUIET)
    assert "h100" in str(refused.value) and "9.0" in str(refused.value) and "\n" not in str(refused.value)
    assert "rtgen[tensorrt]" in refused.value.hint


@needs_rtx
@pytest.mark.parametrize(
    ("sizes", "term"), [((), "the CUDA context"), (((4096, 4096),), "the decoder's state")], ids=["small", "large"]
)
def test_a_gpu_with_too_little_memory_is_refused_before_the_engines(tiny, tmp_path, monkeypatch, sizes, term):
    gpu_config(tmp_path, "small", "rtx4090", vram_gib=0.3)
    monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join((str(tmp_path), str(tiny.configs))))
    monkeypatch.setattr(builder, "build_engine", lambda *_, **__: pytest.fail("an engine was built"))
    with pytest.raises(MemoryPlanError, match=f"of 0.3 GiB; the largest term is {term}"):
        build(tiny.request("small", sizes=sizes), QUIET)


@needs_rtx
def test_the_sizes_that_fit_are_named_with_the_ring_that_they_would_have(tiny, tmp_path, monkeypatch):
    gpu_config(tmp_path, "small", "rtx4090", vram_gib=0.5)
    monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join((str(tmp_path), str(tiny.configs))))
    with pytest.raises(MemoryPlanError) as refused:
        build(tiny.request("small", sizes=((4096, 4096),)), QUIET)
    assert refused.value.hint == "this fits: --size 48x48"  # with the ring of 4096x4096 it would not


def change(file, **tensors):
    """Give tensors of a file other values; None removes one."""
    content = load_file(file) | tensors
    save_file({name: value for name, value in content.items() if value is not None}, file)


def first_name(file):
    return min(load_file(file))


@pytest.mark.parametrize("component", ["text_encoder", "denoiser", "decoder"])
def test_missing_misshapen_and_surplus_weights_are_named(tiny, copied_weights, component):
    def problem():
        with pytest.raises(CheckpointError) as refused:
            load(component, tiny.config, copied_weights, "float32")
        assert str(refused.value).isprintable() and component in str(refused.value)
        return str(refused.value)

    file = copied_weights / f"{component}.0.safetensors"
    name, value = first_name(file), load_file(file)[first_name(file)]
    change(file, **{name: torch.zeros(7, 7)})
    assert f"{name} is [7, 7] instead of {list(value.shape)}" in problem()
    change(file, **{name: None})
    assert f"missing {name}" in problem()
    change(file, **{name: value, "odd.one": torch.zeros(2)})
    assert "surplus" in problem() and "odd.one" in problem()
    change(file, **{"odd.one": None})
    file.write_bytes(file.read_bytes() + b"more")
    assert "not a sound safetensors file" in problem()
    file.write_bytes(file.read_bytes()[:-5])
    assert "truncated" in problem()
    file.unlink()
    assert f"missing in {copied_weights}" in problem()


def test_a_build_with_unfit_weights_leaves_nothing_behind(tiny, copied_weights, tmp_path):
    file = copied_weights / "text_encoder.0.safetensors"
    change(file, **{first_name(file): torch.zeros(3)})
    request = tiny.request(weights=copied_weights, store=tmp_path / "store")
    with pytest.raises(CheckpointError):
        build(request, QUIET)
    store = Store(tmp_path / "store")
    assert not store.packages() and not store.stages() and not list((tmp_path / "store" / ".tmp").iterdir())
    for name in (file.name, tiny.config.weights.tokenizer):
        (copied_weights / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            build(request, QUIET)


def test_a_tensor_in_two_files_is_refused(tiny, copied_weights):
    name = first_name(copied_weights / "denoiser.0.safetensors")
    change(copied_weights / "denoiser.1.safetensors", **{name: torch.zeros(2)})
    with pytest.raises(CheckpointError, match="is in both"):
        load("denoiser", tiny.config, copied_weights, "float32")


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_is_listed_and_the_next_one_succeeds(tiny, tiny_built, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "rtgen", "build", "--gpu", "cpu", "--recipe", "fp32", "--model", "tiny"]
    command += ["--weights", str(tiny.weights), "--store", str(store)]
    for wait in (0.0, 3.0):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(store.glob(".tmp/*")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(wait)
        child.kill()
        assert child.wait() != 0
        assert not Store(store).packages()
        assert all(stage.problem is None for stage in Store(store).stages())
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (package,) = Store(store).packages()
    expected = tiny_built("tiny")
    assert package.key == expected.key
    assert (package.path / MANIFEST_NAME).read_bytes() == (expected.package / MANIFEST_NAME).read_bytes()
    Store(store).prune()
    assert not list(store.glob(".tmp/*"))
