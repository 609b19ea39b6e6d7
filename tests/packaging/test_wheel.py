"""The wheel as a user meets it: installed with pip into a fresh environment that has neither torch nor ONNX."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rtgen.config.load import list_gpus, load_gpu, load_recipe
from scripts.make_wheel import CARRIED, ROOT, make_wheel

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("hatchling")

needs_tensorrt_rtx = pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT for RTX does not exist there")

MOST_BYTES = 90 << 20
"""The package index takes files of 100 MB; the weights are 39 MB, and 15 MB more for each recipe that quantizes."""


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and the folder that its commands run in."""

    folder: Path

    def run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        programs = self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RTGEN_", "PYTHON"))}
        environment["RTGEN_STORE"] = str(self.folder / "store")
        return subprocess.run(
            [programs / program, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def rtgen(self, *arguments: str) -> Any:
        """The JSON object that ``rtgen`` prints."""
        ran = self.run("rtgen", *arguments, "--json")
        assert ran.stdout, ran.stderr
        return json.loads(ran.stdout) | {"code": ran.returncode}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(tmp_path_factory.mktemp("installed"))
    subprocess.run([sys.executable, "-m", "venv", made.folder / "venv"], check=True)
    ran = made.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    assert ran.returncode == 0, ran.stderr
    return made


def test_the_wheel_holds_the_data_and_nothing_of_the_workshop(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.stat().st_size < MOST_BYTES
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"rtgen"}
    assert not [name for name in names if "__pycache__" in name or name.startswith(("scripts", "tests"))]
    assert "rtgen/py.typed" in names
    for folder, carried in (("configs", "rtgen/_data/configs"), ("rtgen/bundled/postcard", "rtgen/bundled/postcard")):
        sources = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert sources
        assert {f"{carried}/{source}" for source in sources} <= {*names}
    assert any(name.startswith("rtgen/_data/plugins/") for name in names)
    stages = [Path(name) for name in names if name.startswith("rtgen/bundled/stages/graphs/")]
    assert len({path.parent for path in stages}) == len(CARRIED)
    assert sorted(path.name for path in stages if path.suffix == ".onnx") == sorted(
        len(CARRIED) * ["decoder.onnx", "denoiser.onnx", "text_encoder.onnx"]
    )
    quantized = [load_recipe(recipe) for recipe in CARRIED if load_recipe(recipe).quantization is not None]
    assert [path.name for path in stages if path.suffix == ".safetensors"] == len(quantized) * [
        "denoiser.quantized.safetensors"
    ]
    assert "rtgen/bundled/stages/exporter.json" in names


def test_every_default_is_carried_but_of_gpus_that_need_an_extra_anyway() -> None:
    gpus = [load_gpu(name) for name in list_gpus()]
    assert {gpu.default_recipe for gpu in gpus if gpu.compiler != "tensorrt"} <= {*CARRIED}


def test_the_graphs_do_not_say_where_they_were_made(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        graphs = [archive.read(name) for name in archive.namelist() if name.endswith(".onnx")]
    assert not [graph for graph in graphs if os.fsencode(ROOT) in graph or b"rtgen-wheel-" in graph]


def test_it_carries_the_sources_of_the_kernels(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {name.rpartition("/")[2] for name in archive.namelist() if name.startswith("rtgen/_data/plugins/")}
    assert carried == {path.name for path in (ROOT / "plugins").iterdir()} and "numbers.cuh" in carried


def test_making_the_wheel_leaves_the_source_tree_alone(wheel: Path) -> None:
    assert not (ROOT / "rtgen" / "bundled" / "stages").exists()
    assert not (ROOT / "rtgen" / "_data").exists()


def test_the_sources_have_the_same_digest_in_the_wheel(installed: Installed) -> None:
    code = "from rtgen.build.toolchain import exporter_sources; print(exporter_sources())"
    here = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert installed.run("python", "-c", code).stdout == here.stdout


def test_it_installs_without_torch_and_onnx(installed: Installed) -> None:
    assert installed.run("rtgen", "--version").returncode == 0
    for module in ("torch", "onnx", "onnx_ir", "onnxscript"):
        assert f"No module named '{module}'" in installed.run("python", "-c", f"import {module}").stderr


@needs_tensorrt_rtx
@pytest.mark.parametrize("gpu", ["rtx4080-laptop", "rtx5090"])
def test_it_builds_tensorrt_engines_of_the_bundled_model(installed: Installed, gpu: str) -> None:
    built = installed.rtgen("build", "--gpu", gpu)
    assert built["ok"], built
    package = Path(built["data"]["package"])
    assert sorted(path.name for path in package.glob("*.engine")) == [
        "decoder.engine", "denoiser.engine", "text_encoder.engine",
    ]  # fmt: skip
    assert {stage["name"]: stage["cached"] for stage in built["data"]["stages"]} == {"graphs": True, "engines": False}


def test_it_makes_a_video_on_the_processor(installed: Installed) -> None:
    prompt = "a red hot air balloon drifts right over mountains at sunset"
    played = installed.rtgen("run", "--gpu", "cpu", "--prompt", prompt, "--frames", "24", "-o", "x.mp4")
    assert played["ok"], played
    assert played["data"]["frames"] == 24
    assert (installed.folder / "x.mp4").stat().st_size > 1000


@needs_tensorrt_rtx
def test_graphs_that_it_does_not_carry_need_the_compile_extra(installed: Installed) -> None:
    refused = installed.rtgen("build", "--gpu", "rtx4080-laptop", "--size", "256x256")
    assert (refused["ok"], refused["code"]) == (False, 3)
    assert "rtgen[compile]" in refused["error"]["hint"]
