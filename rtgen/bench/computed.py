"""Figures of kernels on GPUs that are not here: what each launch takes of a multiprocessor, and the roofline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rtgen.bench.cases import Case, cases
from rtgen.bench.instructions import Mix, instruction_mix
from rtgen.bench.launches import Launch, in_order, launches
from rtgen.bench.occupancy import Occupancy, multiprocessor, occupancy
from rtgen.bench.result import Measurement
from rtgen.config.gpu import GpuConfig
from rtgen.errors import UsageError
from rtgen.estimate.roofline import peak
from rtgen.plugins.base import Plugin
from rtgen.plugins.compiler import Resources, compile_kernel


@dataclass(frozen=True)
class ComputedLaunch:
    """One kernel of a case on a GPU."""

    gpu: str
    case: str
    launch: Launch
    resources: Resources
    occupancy: Occupancy
    waves: float
    """Times that the GPU is filled with the launch's blocks."""
    mix: Mix | None
    """None without a disassembler."""

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, static and dynamic."""
        return self.resources.shared + self.launch.shared


@dataclass(frozen=True)
class Computed:
    """What is known of the plugins on a GPU without running them."""

    rooflines: tuple[Measurement, ...]
    launches: tuple[ComputedLaunch, ...]


def compute(plugins: list[Plugin], gpu: GpuConfig) -> Computed:
    """Of every case of the plugins that have a kernel.

    Raises UsageError for a target that is no CUDA GPU, BuildError for a kernel that does not compile.
    """
    if gpu.compute_capability is None or gpu.multiprocessors is None:
        raise UsageError(f"{gpu.name} runs no kernels", hint="choose a CUDA GPU: rtgen gpu ls")
    found = [(plugin, case) for plugin in plugins if plugin.kernel is not None for case in cases(plugin.name)]
    return Computed(
        tuple(_roofline(plugin, case, gpu) for plugin, case in found),
        tuple(item for plugin, case in found for item in _launches(plugin, case, gpu)),
    )


def _roofline(plugin: Plugin, case: Case, gpu: GpuConfig) -> Measurement:
    """The time at full rates: of the products and of the memory, whichever is longer."""
    arithmetic = sum(count / peak(gpu, number) for number, count in case.operations.items())
    memory = case.bytes / (gpu.bandwidth_gb_s * 1e9)
    limit = "arithmetic" if arithmetic >= memory else "bandwidth"
    name = f"{plugin.name}: {case.name}"
    return Measurement(
        name, 1e6 * max(arithmetic, memory), "us", None, None, f"computed for {gpu.name}: its roofline, by {limit}"
    )


def _launches(plugin: Plugin, case: Case, gpu: GpuConfig) -> Iterator[ComputedLaunch]:
    assert gpu.compute_capability is not None and gpu.multiprocessors is not None
    on = multiprocessor(gpu.compute_capability)
    inputs = in_order(plugin, case.inputs)
    for launch in launches(plugin, inputs, case.attributes, gpu.compute_capability, gpu.multiprocessors):
        resources = compile_kernel(launch.source, gpu.compute_capability).resources[launch.entry]
        shared = resources.shared + launch.shared
        held = occupancy(on, threads=launch.threads, registers=resources.registers, shared=shared)
        room = held.blocks * gpu.multiprocessors
        mix = instruction_mix(launch.source, gpu.compute_capability).get(launch.entry)
        yield ComputedLaunch(
            gpu.name, f"{plugin.name}: {case.name}", launch, resources, held, launch.blocks / max(room, 1), mix
        )
