"""The GPU's figures from a stand-in for NVML."""

import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from rtgen.runtime.gpu_monitor import GpuMonitor, GpuUse


class Nvml(ModuleType):
    """Two GPUs; the second is an 8.9 whose memory grows and whose power swings."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        super().__init__("pynvml")
        self.opened = self.closed = self.samples = 0
        self.unanswered = set()
        self.lost_after = None

    def nvmlInit(self):
        self.opened += 1

    def nvmlShutdown(self):
        self.closed += 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return ((7, 5), (8, 9))[handle]

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        self._answer("memory", handle)
        self.samples += 1
        return SimpleNamespace(used=(3, 5, 4)[min(self.samples - 1, 2)] << 30)

    def nvmlDeviceGetPowerUsage(self, handle):
        self._answer("power", handle)
        return 80_000 if self.samples % 2 else 100_000

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._answer("utilisation", handle)
        return SimpleNamespace(gpu=75, memory=10)

    def _answer(self, question, handle):
        assert handle == 1
        if question in self.unanswered:
            raise self.NVMLError(question)


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    module = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def watched(nvml, samples, capability="8.9"):
    with GpuMonitor(capability, interval_s=0.001) as monitor:
        end = time.monotonic() + 10
        while nvml.samples < samples and time.monotonic() < end:
            time.sleep(0.001)
    assert nvml.closed == nvml.opened
    assert not [thread for thread in threading.enumerate() if thread.name == "rtgen-nvml"]
    return monitor.use


def test_the_peak_of_memory_and_the_mean_of_power_and_utilisation_are_told(nvml):
    use = watched(nvml, 20)
    assert use.gpu_memory_bytes == 5 << 30 and use.gpu_utilisation == pytest.approx(0.75)
    assert 85 < use.gpu_power_w < 95


def test_what_a_gpu_does_not_answer_is_unknown_and_the_rest_is_told(nvml):
    nvml.unanswered = {"power"}
    use = watched(nvml, 3)
    assert use.gpu_power_w is None and use.gpu_utilisation == 0.75 and use.gpu_memory_bytes == 5 << 30


def test_only_the_packages_gpu_is_watched_and_only_where_cuda_may_use_it(nvml, monkeypatch):
    assert watched(nvml, 0, "12.0") == GpuUse()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert watched(nvml, 0) == GpuUse()


@pytest.mark.parametrize("module", [None, "broken"])
def test_without_nvml_nothing_is_seen_and_nothing_raised(monkeypatch, module):
    class Broken(Nvml):
        def nvmlInit(self):
            raise self.NVMLError("no driver")

    monkeypatch.setitem(sys.modules, "pynvml", Broken() if module else None)
    with GpuMonitor("8.9") as monitor:
        pass
    assert monitor.use == GpuUse(None, None, None)


def test_a_package_for_processors_asks_no_gpu(nvml):
    with GpuMonitor(None) as monitor:
        pass
    assert monitor.use == GpuUse() and nvml.opened == 0
