import sys
from types import SimpleNamespace

import pytest

from rtgen.config import load
from rtgen.engine import compilers, trt
from rtgen.runtime.select import best_gpu_name, detect_gpus


class FakeNvmlError(Exception):
    pass


def fake_nvml(gpus, fails=""):
    """An NVML with these (name, capability, GiB) GPUs, where the function ``fails`` raises."""

    def call(name, answer):
        def function(*arguments):
            if name == fails:
                raise FakeNvmlError(name)
            return answer(*arguments)

        return function

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda index: gpus[index][0].encode(),
        "nvmlDeviceGetUUID": lambda index: f"GPU-{index}abc",
        "nvmlDeviceGetCudaComputeCapability": lambda index: tuple(map(int, gpus[index][1].split("."))),
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(total=gpus[index][2] << 30, free=1 << 30),
    }
    functions = {name: staticmethod(call(name, answer)) for name, answer in answers.items()}
    return type("pynvml", (), {"NVMLError": FakeNvmlError, **functions})


GPUS = [("GeForce RTX 2080 Ti", "7.5", 11), ("GeForce RTX 4080 Laptop GPU", "8.9", 12)]


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(trt, "installed_version", {"tensorrt_rtx": "1.7"}.get)
    monkeypatch.setattr(load, "match_gpu", match)
    return lambda *arguments: monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(*arguments))


def match(name, capability, vram_gib):
    if capability == "9.0":
        return load.load_gpu("h100")
    configs = {"7.5": ("t4", "tensorrt"), "8.9": ("rtx4080-laptop", "tensorrt_rtx")}
    if capability not in configs:
        return None
    config, compiler = configs[capability]
    return SimpleNamespace(name=config, compiler=compiler, compute_capability=capability, fallback=None)


def test_gpus_are_described_as_the_driver_does(machine):
    machine(GPUS)
    assert [(gpu.name, gpu.compute_capability, gpu.vram_bytes >> 30, gpu.driver) for gpu in detect_gpus()] == [
        (*gpu, "580.1") for gpu in GPUS
    ]


@pytest.mark.parametrize(("visible", "count"), [("0", 1), ("1, 0", 2), ("", 0), ("-1", 0), ("GPU-1a", 1)])
def test_gpus_hidden_from_cuda_do_not_count(machine, monkeypatch, visible, count):
    machine(GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(detect_gpus()) == count


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlSystemGetDriverVersion", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_does_not_answer_means_the_cpu(machine, fails):
    machine(GPUS, fails)
    assert detect_gpus() == []
    assert best_gpu_name() == "cpu"


def test_the_largest_gpu_whose_tensorrt_is_installed_is_chosen(machine):
    machine(GPUS)
    assert best_gpu_name() == "rtx4080-laptop"
    machine(GPUS[:1])  # its config wants the other TensorRT
    assert best_gpu_name() == "cpu"
    machine([("Unheard of", "5.0", 4)])
    assert best_gpu_name() == "cpu"


@pytest.mark.parametrize(("torch", "best"), [("2.13", "h100"), (None, "cpu")])
def test_a_gpu_whose_fallback_is_installed_is_chosen_too(machine, monkeypatch, torch, best):
    machine([("NVIDIA H100 80GB HBM3", "9.0", 80)])
    monkeypatch.setattr(compilers, "installed_version", {"torch": torch}.get)
    assert best_gpu_name() == best
