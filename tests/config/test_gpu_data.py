"""Sanity of the numbers in ``configs/gpus``: relations that hold for real hardware and catch slips of the pen."""

import pytest

from rtgen.config.gpu import GpuConfig
from rtgen.config.load import list_gpus, load_gpu, load_recipe, recipe_for

ARCHITECTURES = {
    "7.5": "Turing",
    "8.0": "Ampere",
    "8.6": "Ampere",
    "8.9": "Ada Lovelace",
    "9.0": "Hopper",
    "12.0": "Blackwell",
}
REQUIRED = {
    *("rtx2080ti", "rtx3060", "rtx3080", "rtx4070-laptop", "rtx4080-laptop", "rtx4090", "rtx5070-laptop", "rtx5080"),
    *("rtx5090", "a100", "l40s", "t4", "h100", "h200", "cpu"),
}
FULL_RATE = {"t4", "a100", "a100-40gb", "l40s", "h100", "h200"}
"""Data-centre GPUs: FP32 accumulation costs them nothing."""


@pytest.fixture(params=list_gpus())
def gpu(request: pytest.FixtureRequest) -> GpuConfig:
    return load_gpu(request.param)


@pytest.fixture(params=[name for name in list_gpus() if name != "cpu"])
def cuda_gpu(request: pytest.FixtureRequest) -> GpuConfig:
    return load_gpu(request.param)


def test_the_promised_targets_are_there() -> None:
    assert set(list_gpus()) >= REQUIRED


def test_default_recipe_runs(gpu: GpuConfig) -> None:
    recipe_for(gpu, load_recipe(gpu.default_recipe))


def test_architecture_and_compiler_follow_from_the_compute_capability(cuda_gpu: GpuConfig) -> None:
    assert cuda_gpu.architecture == ARCHITECTURES[str(cuda_gpu.compute_capability)]
    assert cuda_gpu.compiler == ("tensorrt" if cuda_gpu.compute_capability == "9.0" else "tensorrt_rtx")


def test_fp32_rates_imply_a_clock_of_that_many_multiprocessors(cuda_gpu: GpuConfig) -> None:
    operations = 256 if float(str(cuda_gpu.compute_capability)) not in (7.5, 8.0) else 128
    assert cuda_gpu.multiprocessors is not None
    assert 1.3 <= cuda_gpu.throughput_tops.fp32 * 1e6 / (cuda_gpu.multiprocessors * operations) / 1000 <= 2.7  # GHz


def test_number_formats_are_those_of_the_architecture(cuda_gpu: GpuConfig) -> None:
    capability, rates = float(str(cuda_gpu.compute_capability)), cuda_gpu.throughput_tops
    assert rates.fp16 is not None
    assert rates.int8 is not None
    assert (rates.bf16 is not None) == (capability >= 8.0)
    assert (rates.fp8 is not None) == (capability >= 8.9)
    assert (rates.fp4 is not None) == (capability >= 12.0)
    assert (rates.int4 is not None) == (capability < 9.0)


def test_rates_stand_in_the_ratios_of_tensor_cores(cuda_gpu: GpuConfig) -> None:
    rates = cuda_gpu.throughput_tops
    assert rates.fp16 and rates.int8
    integer_to_half = 2 if cuda_gpu.name in FULL_RATE else 4
    assert rates.int8 == pytest.approx(integer_to_half * rates.fp16, rel=0.02)
    assert rates.bf16 in (None, rates.fp16)
    assert rates.fp16_sums == (None if cuda_gpu.name in FULL_RATE else pytest.approx(2 * rates.fp16, rel=0.01))
    if rates.fp8:
        assert rates.fp8 == pytest.approx(2 * rates.fp16, rel=0.02)
    if rates.int4:
        assert rates.int4 == pytest.approx(2 * rates.int8, rel=0.01)
    if rates.fp4:
        assert rates.fp4 == pytest.approx(2 * rates.int8, rel=0.01)
    assert rates.fp32 * 1.9 < rates.fp16 < rates.fp32 * 17


def test_memory_and_power_are_within_what_was_ever_sold(cuda_gpu: GpuConfig) -> None:
    low, high = (1500, 5000) if cuda_gpu.compute_capability in ("8.0", "9.0") else (190, 1800)
    assert low <= cuda_gpu.bandwidth_gb_s <= high
    assert 6 <= cuda_gpu.vram_gib <= 141
    laptop = "Laptop" in cuda_gpu.title
    assert laptop == cuda_gpu.name.endswith("-laptop")
    assert 60 <= cuda_gpu.board_power_w <= (150 if laptop else 700)


def test_device_names_are_unambiguous() -> None:
    names = [name for gpu in map(load_gpu, list_gpus()) for name in gpu.device_names]
    assert len(names) == len(set(names))


def test_title_and_device_names_agree(cuda_gpu: GpuConfig) -> None:
    model = cuda_gpu.title.removeprefix("GeForce RTX ").split()[0]
    assert cuda_gpu.device_names
    assert all(model in name and ("Laptop" in name) == ("Laptop" in cuda_gpu.title) for name in cuda_gpu.device_names)
    assert model.lower() in cuda_gpu.name
