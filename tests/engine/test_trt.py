"""What the door to TensorRT promises, with and without the library behind it."""

import subprocess
import sys
from importlib import metadata

import pytest

from rtgen.data_types import ITEM_SIZES
from rtgen.engine import trt
from rtgen.errors import MissingDependencyError, NoGpuError, PackageInvalidError

needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@pytest.mark.parametrize("flavour", list(trt.TRAITS))
def test_asking_for_the_version_loads_no_native_code(flavour: trt.Flavour):
    code = (
        "import sys; from rtgen.engine import trt; "
        f"print(trt.installed_version({flavour!r})); sys.exit({flavour!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_the_version_of_a_split_distribution_is_found(monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        if name != "tensorrt-cu13":
            raise metadata.PackageNotFoundError(name)
        return "10.13.0"

    monkeypatch.setattr(metadata, "version", version)
    assert trt.installed_version("tensorrt") == "10.13.0"
    assert trt.installed_version("tensorrt_rtx") is None


def test_loading_an_absent_flavour_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError) as caught:
        trt.load("tensorrt")
    assert caught.value.hint is not None and 'pip install "rtgen[tensorrt]"' in caught.value.hint


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_rtx_serves_rtx_gpus(capability: str):
    assert trt.supports("tensorrt_rtx", capability)


@pytest.mark.parametrize("capability", ["6.1", "9.0", "10.0", "10.3"])
def test_rtx_refuses_the_others_and_says_why(capability: str):
    reason = trt.unsupported_reason("tensorrt_rtx", capability)
    assert reason is not None and capability in reason and "8.9" in reason


def test_the_data_centre_flavour_serves_hopper():
    assert trt.supports("tensorrt", "9.0")


@needs_rtx
def test_element_types_map_both_ways_and_agree_on_size():
    module = trt.load("tensorrt_rtx")
    for name, size in ITEM_SIZES.items():
        value = trt.data_type(module, name)  # type: ignore[arg-type]
        assert trt.data_type_name(value) == name
        assert value.itemsize == size


@needs_rtx
def test_an_element_type_outside_the_manifest_is_refused():
    with pytest.raises(PackageInvalidError, match="BF16"):
        trt.data_type_name(trt.load("tensorrt_rtx").DataType.BF16)


@needs_rtx
def test_every_served_gpu_can_be_aimed_at():
    module = trt.load("tensorrt_rtx")
    builder = module.Builder(trt.logger(module, trt.LogLines()))
    for capability in trt.TRAITS["tensorrt_rtx"].compute_capabilities:
        config = builder.create_builder_config()
        trt.set_target(module, config, capability)
        assert config.get_compute_capability(0).name == "SM" + capability.replace(".", "")


@needs_rtx
def test_bytes_that_are_no_engine_are_refused_with_a_reason():
    module, lines = trt.load("tensorrt_rtx"), trt.LogLines()
    logger = trt.logger(module, lines)
    # Which of the two depends on whether this machine has a GPU driver.
    with pytest.raises((PackageInvalidError, NoGpuError)) as caught:
        trt.deserialize(module, module.Runtime(logger), lines, b"not an engine")
    assert caught.value.hint is not None
    assert lines.errors


def test_a_missing_driver_is_told_from_a_bad_engine():
    class Runtime:
        def deserialize_cuda_engine(self, engine: bytes) -> None:
            return None

    lines = trt.LogLines()
    module = type("tensorrt_rtx", (), {"__version__": "1.7"})
    lines("error", "version tag does not match")
    with pytest.raises(PackageInvalidError, match="version tag does not match"):
        trt.deserialize(module, Runtime(), lines, b"")
    lines("error", "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version)")
    with pytest.raises(NoGpuError):
        trt.deserialize(module, Runtime(), lines, b"")
