import pytest

from rtgen.config import load
from rtgen.engine import trt
from rtgen.engine.manifest import CompilerEntry, TargetEntry
from rtgen.engine.package import Package
from rtgen.errors import MemoryPlanError, NoGpuError, PackageMismatchError, UsageError
from rtgen.runtime import select
from rtgen.runtime.backends import check_gpu, open_backend
from rtgen.runtime.select import DetectedGpu


@pytest.fixture
def manifest(make_manifest):
    return make_manifest(
        target=TargetEntry(gpu="rtx4080-laptop", compute_capability="8.9", vram_bytes=12 << 30),
        compiler=CompilerEntry(name="tensorrt_rtx", version="1.7.1"),
    )


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(trt, "installed_version", lambda flavour: "1.7.1")
    monkeypatch.setattr(load, "match_gpu", lambda name, capability, vram_gib: None)

    def set_gpus(*gpus):
        monkeypatch.setattr(select, "detect_gpus", lambda: list(gpus))

    return set_gpus


def gpu(capability="8.9", free=8):
    return DetectedGpu("GeForce", capability, 12 << 30, free << 30, "580")


def test_a_fitting_gpu_is_accepted_beside_others(machine, manifest):
    machine(gpu("7.5"), gpu(free=1), gpu(free=8))
    check_gpu(manifest)


@pytest.mark.parametrize(
    ("gpus", "error", "match", "hint"),
    [
        ((), NoGpuError, "no NVIDIA GPU", "--gpu cpu"),
        ((gpu("8.6"),), PackageMismatchError, r"8\.9.*8\.6", "rtgen gpu ls"),
        ((gpu(free=1),), MemoryPlanError, r"2\.0 GiB.*1\.0 of 12\.0", "close other programs"),
    ],
)
def test_a_machine_that_cannot_run_the_package_is_told_why(machine, manifest, gpus, error, match, hint):
    machine(*gpus)
    with pytest.raises(error, match=match) as caught:
        open_backend(Package(None, manifest))
    assert hint in caught.value.hint


def test_the_hint_for_another_gpu_names_its_config(machine, manifest, monkeypatch):
    machine(gpu("8.6"))
    monkeypatch.setattr(load, "match_gpu", lambda *_: type("Config", (), {"name": "rtx3080"}))
    with pytest.raises(PackageMismatchError) as caught:
        check_gpu(manifest)
    assert caught.value.hint == "rtgen build --gpu rtx3080"


def test_engines_of_another_version_are_refused(machine, manifest, monkeypatch):
    machine(gpu())
    monkeypatch.setattr(trt, "installed_version", lambda flavour: "1.8.0")
    with pytest.raises(PackageMismatchError, match=r"1\.7\.1.*1\.8\.0"):
        check_gpu(manifest)


@pytest.mark.parametrize("name", ["onnxruntime", "abacus"])
def test_a_backend_that_does_not_fit_the_package_is_refused(manifest, name):
    with pytest.raises(UsageError, match="tensorrt_rtx"):
        open_backend(Package(None, manifest), name)


def test_a_package_for_the_cpu_needs_no_gpu(machine, make_manifest):
    machine()
    backend = open_backend(Package(None, make_manifest()))
    assert (backend.name, backend.device[:3]) == ("onnxruntime", "CPU")
    backend.close()
