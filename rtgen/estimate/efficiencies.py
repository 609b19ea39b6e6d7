"""What share of their rates kernels reach: ``configs/estimate/efficiencies.toml`` and how an entry is found."""

import tomllib
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from rtgen.config.base import Section
from rtgen.config.gpu import GpuConfig
from rtgen.config.locate import config_directories
from rtgen.errors import ConfigError

Kind = Literal["linear", "attention", "int8_ring_attention", "int4_ring_attention", "convolution", "bandwidth"]
NumberType = Literal["fp32", "fp16", "fp16_sums", "bf16", "fp8", "fp4", "int8", "int4"]
Status = Literal["measured", "published", "fitted", "target", "assumed"]
Case = Literal["low", "value", "high"]
"""How well kernels do: at the lower end of what is known or assumed, as reckoned with, at the upper end."""

FOLDER = "estimate"
_MAXIMUM_BYTES = 1 << 20
PROCESSOR = "none"
"""Stands for targets without a compute capability."""

Wanted = TypeVar("Wanted", bound=Section)


class Ranged(Section):
    """A number with the ends of its range, on some hardware or on all."""

    compute_capabilities: tuple[str, ...] = ()
    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    """``high`` is the faster end, whatever is the greater number."""
    source: str

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not min(self.low, self.high) <= self.value <= max(self.low, self.high):
            raise ValueError(f"value {self.value} is not between low {self.low} and high {self.high}")
        return self

    def at(self, case: Case) -> float:
        return {"low": self.low, "value": self.value, "high": self.high}[case]

    def serves(self, gpu: GpuConfig) -> bool:
        return not self.compute_capabilities or (gpu.compute_capability or PROCESSOR) in self.compute_capabilities


class Efficiency(Ranged):
    """The share of a rate that kernels of a kind reach."""

    kind: Kind
    types: tuple[NumberType, ...] = ()
    status: Status


class Eager(Section):
    """What an implementation without fused kernels moves for each byte that fused ones move."""

    traffic: float = Field(ge=1)
    source: str


class Activations(Section):
    """A builder's activations over the greatest intermediate results that are alive together."""

    denoiser: float = Field(gt=0)
    vae: float = Field(gt=0)
    taehv: float = Field(gt=0)
    source: str


class Efficiencies(Section):
    """The whole file."""

    efficiency: tuple[Efficiency, ...] = Field(min_length=1)
    shortest_kernel: tuple[Ranged, ...] = Field(min_length=1)
    eager: Eager
    activations: Activations

    def find(self, gpu: GpuConfig, kind: Kind, number: NumberType | None = None) -> Efficiency:
        """The entry for work of a kind. Raises ConfigError when the file has none."""
        fitting = [
            entry
            for entry in self.efficiency
            if entry.kind == kind and entry.serves(gpu) and (number is None or number in entry.types)
        ]
        if not fitting:
            what = " ".join(filter(None, (kind.replace("_", " "), number)))
            raise ConfigError(
                f"efficiencies.toml says nothing about {what} on {gpu.name}",
                hint="add an [[efficiency]] entry for it, with its source",
            )
        return min(fitting, key=lambda entry: not entry.compute_capabilities)

    def kernel_seconds(self, gpu: GpuConfig, case: Case) -> float:
        """The least time of a kernel. Raises ConfigError when the file has none for the GPU."""
        fitting = [entry for entry in self.shortest_kernel if entry.serves(gpu)]
        if not fitting:
            raise ConfigError(
                f"efficiencies.toml has no shortest_kernel for {gpu.name}", hint="add one without compute_capabilities"
            )
        return min(fitting, key=lambda entry: not entry.compute_capabilities).at(case)


def load_efficiencies() -> Efficiencies:
    """Those of the first config folder that has them. Raises ConfigError when the file is not valid."""
    return load_estimate_file("efficiencies.toml", Efficiencies)


def load_estimate_file(name: str, schema: type[Wanted]) -> Wanted:
    """A file of ``configs/estimate``, of the first config folder that has it. Raises ConfigError."""
    path = _find(name)
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB")
        return schema.model_validate(tomllib.loads(path.read_bytes().decode("utf-8-sig")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _find(name: str) -> Path:
    for directory in config_directories():
        if (directory / FOLDER / name).is_file():
            return directory / FOLDER / name
    raise ConfigError(f"no config folder has {FOLDER}/{name}", hint="reinstall rtgen")
