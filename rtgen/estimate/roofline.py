"""From what a kernel computes and moves to the time it takes: the greater of both, and no less than a kernel takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rtgen.config.gpu import GpuConfig
from rtgen.estimate.efficiencies import Case, Efficiencies, Efficiency, NumberType
from rtgen.estimate.numerics import Work

Limit = Literal["arithmetic", "bandwidth", "latency"]

FALLBACKS: Mapping[NumberType, NumberType] = {
    "int4": "int8", "fp4": "fp8", "fp8": "fp16", "int8": "fp16", "bf16": "fp16", "fp16_sums": "fp16",
    "fp16": "fp32",
}  # fmt: skip
"""In which type a GPU computes what it has no units for: the codes of INT4 are exact in INT8, and so on."""


@dataclass(frozen=True)
class Cost:
    """A kernel's time in seconds, and what it would be if only one thing limited it."""

    arithmetic: float
    bandwidth: float
    latency: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.bandwidth, self.latency)

    @property
    def limit(self) -> Limit:
        times: dict[Limit, float] = {
            "arithmetic": self.arithmetic, "bandwidth": self.bandwidth, "latency": self.latency,
        }  # fmt: skip
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Hardware:
    """A GPU with what kernels make of it."""

    gpu: GpuConfig
    efficiencies: Efficiencies
    case: Case = "value"
    eager: bool = False

    def cost(self, work: Work) -> Cost:
        """Raises ConfigError when there is no efficiency for the work."""
        is_unfused = self.eager and work.kind == "bandwidth" and work.part != "decoder"
        traffic = self.efficiencies.eager.traffic if is_unfused else 1.0
        share = self.efficiencies.find(self.gpu, "bandwidth").at(self.case)
        return Cost(
            sum(count / self._rate(work, number) for number, count in work.operations.items() if count),
            traffic * work.bytes / (self.gpu.bandwidth_gb_s * 1e9 * share),
            self.efficiencies.kernel_seconds(self.gpu, self.case),
        )

    def used(self, work: Work) -> tuple[Efficiency, ...]:
        """The entries that :meth:`cost` reckons with."""
        if not work.operations:
            return (self.efficiencies.find(self.gpu, "bandwidth"),)
        numbers = [number for number, count in work.operations.items() if count]
        return tuple(self.efficiencies.find(self.gpu, work.kind, number) for number in numbers)

    def _rate(self, work: Work, number: NumberType) -> float:
        share = self.efficiencies.find(self.gpu, work.kind, number).at(self.case)
        return peak(self.gpu, number) * share


def peak(gpu: GpuConfig, number: NumberType) -> float:
    """Operations a second of a number type, or of the one that takes its place."""
    while True:
        rate: float | None = getattr(gpu.throughput_tops, number)
        if rate is not None:
            return rate * 1e12
        number = FALLBACKS[number]
