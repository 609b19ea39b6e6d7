"""A setting's predicted times, rates, memory and energy: in a full window, once a stream has got going."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rtgen.engine.manifest import MemoryPlan
from rtgen.estimate.decoder import decoder_run
from rtgen.estimate.denoiser import denoiser_pass
from rtgen.estimate.efficiencies import Case, Efficiencies, Efficiency
from rtgen.estimate.memory import memory_plan
from rtgen.estimate.numerics import Numerics, Work, numerics_of, work
from rtgen.estimate.operations import Operation, Part, Product
from rtgen.estimate.roofline import Hardware, Limit
from rtgen.estimate.setting import Setting


@dataclass(frozen=True)
class PartCost:
    """What one part of the work costs in a chunk: seconds, operations and bytes moved of all its kernels."""

    part: Part
    seconds: float
    operations: float
    bytes: float
    limit: Limit
    """What limits most of its time."""

    def times(self, count: float) -> "PartCost":
        return replace(self, seconds=self.seconds * count, operations=self.operations * count, bytes=self.bytes * count)


@dataclass(frozen=True)
class Prediction:
    """Times in seconds, power in watts, energy in joules."""

    setting: Setting
    parts: tuple[PartCost, ...]
    """Of a chunk, the most expensive first."""
    pass_seconds: float
    """A denoise pass in a full window. The clean pass is the same graph and takes as long."""
    decode_seconds: float
    """All decoder runs of a chunk."""
    memory: MemoryPlan

    @property
    def denoise_seconds(self) -> float:
        """All passes of a chunk, the clean one included."""
        return (self.setting.steps + 1) * self.pass_seconds

    @property
    def chunk_seconds(self) -> float:
        """Passes and decoder runs one after the other: overlapped on one GPU, they would share what limits them.

        Encoding is the host's, and not counted.
        """
        return self.denoise_seconds + self.decode_seconds

    @property
    def denoise_fps(self) -> float:
        return self.setting.frames / self.denoise_seconds

    @property
    def fps(self) -> float:
        """End to end."""
        return self.setting.frames / self.chunk_seconds

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.memory.vram

    @property
    def power(self) -> float:
        """At most: the board's power, drawn while anything is computed."""
        return self.setting.gpu.board_power_w

    @property
    def frame_energy(self) -> float:
        """At most: the board's power over a frame's time."""
        return self.power / self.fps

    @property
    def limit(self) -> PartCost:
        """The part that costs most."""
        return self.parts[0]


def predict(setting: Setting, efficiencies: Efficiencies, case: Case = "value") -> Prediction:
    """Raises ConfigError when an efficiency is missing, UsageError when the recipe can quantize nothing."""
    model, hardware = setting.model, Hardware(setting.gpu, efficiencies, case, setting.eager)
    operations = denoiser_pass(model, setting.size)
    decoder = decoder_run(model, setting.size)
    products = [item for item in operations if isinstance(item, Product)]
    numerics = numerics_of(setting, products)
    one_pass = _costs(_works(operations, numerics), hardware)
    one_run = _costs(_works(decoder.operations, numerics), hardware)
    runs = model.cache.chunk // model.decoded_at_once
    parts = [cost.times(setting.steps + 1) for cost in one_pass] + [cost.times(runs) for cost in one_run]
    return Prediction(
        setting,
        tuple(sorted(parts, key=lambda cost: cost.seconds, reverse=True)),
        sum(cost.seconds for cost in one_pass),
        runs * sum(cost.seconds for cost in one_run),
        memory_plan(numerics, products, decoder, efficiencies.activations),
    )


def used_efficiencies(setting: Setting, efficiencies: Efficiencies) -> tuple[Efficiency, ...]:
    """The entries that a prediction rests on, each once."""
    operations = denoiser_pass(setting.model, setting.size)
    numerics = numerics_of(setting, [item for item in operations if isinstance(item, Product)])
    hardware = Hardware(setting.gpu, efficiencies)
    works = _works([*operations, *decoder_run(setting.model, setting.size).operations], numerics)
    return tuple(dict.fromkeys(entry for item in works for entry in hardware.used(item)))


def _works(operations: Iterable[Operation], numerics: Numerics) -> list[Work]:
    return [work(operation, numerics) for operation in operations]


def _costs(works: Iterable[Work], hardware: Hardware) -> list[PartCost]:
    """The works summed by part."""
    by_part: Mapping[Part, list[Work]] = defaultdict(list)
    for item in works:
        by_part[item.part].append(item)
    return [_cost(part, items, hardware) for part, items in by_part.items()]


def _cost(part: Part, works: list[Work], hardware: Hardware) -> PartCost:
    costs = [hardware.cost(item) for item in works]
    by_limit: dict[Limit, float] = defaultdict(float)
    for cost in costs:
        by_limit[cost.limit] += cost.seconds
    return PartCost(
        part,
        sum(cost.seconds for cost in costs),
        sum(sum(item.operations.values()) for item in works),
        sum(item.bytes for item in works),
        max(by_limit, key=lambda limit: by_limit[limit]),
    )
