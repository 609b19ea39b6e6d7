"""Runs command lines in this process, on a store with one small package; slow parts are replaced."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rtgen.cli.main import run as run_command_line
from rtgen.engine.manifest import Manifest
from rtgen.engine.package import open_package
from rtgen.store.store import Store

KEY = "ab12" * 16


@dataclass(frozen=True)
class Ran:
    """A finished command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def rtgen(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run_command_line([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


def manifest(model: str = "postcard", gpu: str = "cpu", key: str = KEY) -> Manifest:
    """A manifest whose files are still to be filled in."""
    sizes = {"min": (64, 64), "opt": (128, 128), "max": (192, 192)}
    component = {"inputs": [], "outputs": []}
    return Manifest.model_validate(
        {
            "key": key,
            "rtgen": "0.1.0",
            "model": {
                "name": model, "digest": "0" * 64, "frames_per_second": 16, "example_prompts": ["a boat"],
                "default_size": (128, 128), "size_step": (16, 16), "latent_channels": 16, "spatial_stride": 8,
                "temporal_stride": 4, "decoder": "vae", "dropped_frames": 0, "chunk": 3, "window": 21, "sink": 0,
                "position_limit": 1024,
                "sigmas": [1.0, 0.5], "sampler": "euler",
                "rope_split": (22, 21, 21), "rope_theta": 10000.0, "prompt_tokens": 32, "tokenizer": "tokenizer.json",
            },
            "target": {"gpu": gpu, "compute_capability": None, "vram_bytes": 16 << 30},
            "recipe": "fp32",
            "compiler": {"name": "onnxruntime", "version": "1.31.1"},
            "profiles": [sizes],
            "components": {"denoiser": {"file": "denoiser.onnx", "weights": ["denoiser.data"], **component}},
            "memory_plan": {
                "weights": 100 << 20, "activations": 50 << 20, "kv_ring": 20 << 20, "decoder_state": 1 << 20,
                "io": 1 << 20, "context": 0, "vram": 16 << 30,
            },
            "files": {},
        }
    )  # fmt: skip


def add_package(root: Path, **names: str) -> Path:
    """Put a sound package into the store at ``root``."""
    made = manifest(**names)

    def make(folder: Path) -> Manifest:
        for name in ("denoiser.onnx", "denoiser.data", "tokenizer.json"):
            (folder / name).write_bytes(name.encode())
        return made

    return Store(root).package(made.model.name, made.target.gpu, made.key, make)[0]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one package of postcard for the processor, and the default store of the test."""
    root = tmp_path / "store"
    monkeypatch.setenv("RTGEN_STORE", str(root))
    add_package(root)
    return root


@pytest.fixture
def add(store: Path) -> Callable[..., Path]:
    """Puts another package into the store."""
    return lambda **names: add_package(store, **names)


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Replace attributes of a module for one test."""

    def replace(name: str, **attributes: object) -> ModuleType:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            module = ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
        for attribute, value in attributes.items():
            monkeypatch.setattr(module, attribute, value, raising=False)
        return module

    return replace


@pytest.fixture
def toolchain(store: Path, provide: Callable[..., ModuleType]) -> SimpleNamespace:
    """A walk that finds or adds packages at once, a player that writes a text, and the requests they were asked."""
    no_gpu = {"gpu_memory_bytes": None, "gpu_power_w": None, "gpu_utilisation": None}
    seen = SimpleNamespace(requests=[], played=[], keys={}, gpu=no_gpu)

    def key_of(request: Any) -> str:
        if request.sizes in seen.keys:
            return seen.keys[request.sizes]
        return KEY if (request.model, request.gpu) == ("postcard", "cpu") else f"{abs(hash(request.gpu)):064x}"[:64]

    def build(request: Any, progress: Any) -> Any:
        seen.requests.append(request)
        progress.update("engine: denoiser", 0.5)
        root, key = request.store or store, key_of(request)
        cached = Store(root).find_package(request.model, request.gpu, key) is not None and not request.force
        path = add_package(root, model=request.model, gpu=request.gpu, key=key)
        progress.update("engine: denoiser", 1.0)
        stages = (SimpleNamespace(name="export", seconds=0.5, cached=cached),)
        from rtgen.engine.package import read_manifest

        return SimpleNamespace(
            package=path, key=key, cached=cached, seconds=1.0, manifest=read_manifest(path), stages=stages
        )

    def find(request: Any, size: tuple[int, int], *more: tuple[int, int]) -> Any:
        if any(max(other) > 192 for other in more):
            return None
        alone = replace(request, sizes=(size,)) if (size,) in seen.keys else request
        path = Store(request.store or store).find_package(request.model, request.gpu, key_of(alone))
        return None if path is None else SimpleNamespace(path=path, request=alone)

    def export(request: Any, progress: Any) -> Path:
        return store / "postcard" / "cpu" / KEY

    def compare(path: Path, progress: Any, **options: Any) -> Any:
        row = SimpleNamespace(component="denoiser", tensor="velocity", max_abs=1e-4, max_rel=1e-3, passed=True)
        return SimpleNamespace(rows=[row])

    def prepared(request: Any, progress: Any) -> tuple[None, Path]:
        layer = {"name": "blocks.0.ffn.0.weight", "weights": "int4", "block": 64, "activations": None, "group": None,
                 "elements": 4096, "snr_db": 20.0}  # fmt: skip
        result = {"recipe": request.recipe, "algorithm": "none", "modelopt": None, "calibration": None,
                  "layers": [layer]}  # fmt: skip
        folder = store / "quantized"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "quantization.json").write_text(json.dumps(result), encoding="utf-8")
        return None, folder

    def build_fitting(request: Any, progress: Any, serving: tuple[tuple[int, int], ...] = ()) -> Any:
        from rtgen.build import walk

        return walk.build(request, progress)

    provide("rtgen.build.fitting", build_fitting=build_fitting)
    provide("rtgen.build.lookup", find_package=find)
    provide("rtgen.build.walk", build=build, export=export, package_key=key_of, prepared=prepared)
    provide("rtgen.build.verify", compare_with_onnxruntime=compare)
    provide("rtgen.bench.computed", compute=computed)
    provide("rtgen.bench.pipeline", measure=pipeline_figures)
    provide("rtgen.cli.doctor_checks", probe=probe_answer)
    provide("rtgen.runtime.pipeline", Pipeline=SimpleNamespace(open=lambda package: StillPipeline(seen, package)))
    provide("rtgen.runtime.select", detect_gpus=lambda: ("a GPU",))
    provide("rtgen.runtime.player", play=player(seen))
    return seen


def pipeline_figures(*setting: Any) -> Any:
    from rtgen.bench.pipeline import PipelineFigures
    from rtgen.bench.result import Measurement

    return PipelineFigures([Measurement("package fp32: end to end", 12.0, "FPS", 6.0, 2.0, "eager")], [], {}, False)


class StillPipeline:
    """Stands for a pipeline; only its end is watched."""

    def __init__(self, seen: SimpleNamespace, package: Path) -> None:
        self.seen, self.package = seen, open_package(package)
        self.manifest = self.package.manifest

    def __enter__(self) -> "StillPipeline":
        return self

    def __exit__(self, *error: object) -> None:
        self.seen.closed = True


def player(seen: SimpleNamespace) -> Callable[..., Any]:
    def play(
        pipeline: Any, output: str, prompt: str, seed: int, frames: int, size: Any, on_progress: Callable[..., None],
        *, error_budget: float, then: list[tuple[int, str]], pace: Any,
    ) -> Any:  # fmt: skip
        from rtgen.runtime.player import RunSummary

        seen.played.append(
            SimpleNamespace(prompt=prompt, frames=frames, size=size, error_budget=error_budget, then=then, pace=pace)
        )
        on_progress(12, 24.0, 0.2)
        on_progress(frames, 24.0, 0.2)
        warnings = ("the prompt was cut",)
        passes = (2.5, 0.375) if error_budget else (4.0, 0.0)
        return RunSummary(
            output, frames, 2.0, 24.0, 0.2, "onnxruntime", "CPU, 2 threads", (128, 128), warnings, *passes,
            shed_passes=6 if error_budget else 0, steady_fps=26.0, loop_fps=50.0, chunk_jitter_p95=1.1,
            chunk_jitter_max=1.25, overlap=False, dropped_frames=5 if pace else 0, paused_s=0.5 if pace else 0.0,
            **seen.gpu,
        )  # fmt: skip

    return play


def computed(plugins: Any, gpu: Any) -> Any:
    from rtgen.bench.computed import Computed, ComputedLaunch
    from rtgen.bench.launches import Launch
    from rtgen.bench.occupancy import Occupancy
    from rtgen.bench.result import Measurement
    from rtgen.plugins.base import KernelSource
    from rtgen.plugins.compiler import Resources

    launch = Launch(KernelSource("scale.cu"), "scale", 64, 128, 0)
    held = Occupancy(12, 1.0, "threads")
    return Computed(
        (Measurement("Scale: 4680 tokens", 0.25, "ms", None, None, f"computed for {gpu.name}"),),
        (ComputedLaunch(gpu.name, "4680 tokens", launch, Resources(32, 0, 0, 0, 1024), held, 0.1, None),),
    )


def probe_answer(name: str) -> dict[str, Any]:
    device = {"name": "NVIDIA GeForce RTX 4080 Laptop GPU", "compute_capability": "8.9", "vram_bytes": 12 << 30}
    return {
        "nvml": {"driver": "580.10", "devices": [device]},
        "tensorrt_rtx": {"version": "1.7"},
        "tensorrt": {"version": "10.13"},
        "nvrtc": {"version": "13.5", "architecture": "sm_89"},
        "onnxruntime": {"version": "1.31", "providers": ["CPUExecutionProvider"]},
        "codecs": {"usable": {"libx264": True, "h264_nvenc": False}},
    }[name]
