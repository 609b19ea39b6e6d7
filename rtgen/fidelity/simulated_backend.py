"""A package whose denoiser is a simulated one in torch, behind the interface of a backend.

The ordinary pipeline drives it: prompts, noise, sampler, ring and decoder are those of ``rtgen run``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from rtgen.quantize.device import Device
from rtgen.quantize.layered import LayeredDenoiser
from rtgen.quantize.recorder import RecordingSession

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import KVCacheFormat
    from rtgen.engine.manifest import ComponentEntry
    from rtgen.models.dit import CausalVideoDiT
    from rtgen.runtime.session import Array, Backend, Session


PROCESSOR: Final = Device("cpu")


def sessions_of(
    config: ModelConfig, model: CausalVideoDiT, ring: KVCacheFormat | None = None
) -> Callable[[], SimulatedDenoiser]:
    """Opens sessions on the processor that share the weights of a simulated denoiser; ``ring``: what each's holds."""
    whole = WholeDenoiser(model)
    return lambda: SimulatedDenoiser(config, whole, ring)


class WholeDenoiser(LayeredDenoiser):
    """A denoiser that is in memory as it is to be used: nothing is copied."""

    def __init__(self, model: CausalVideoDiT) -> None:
        self.shell, self._resident = model, list(model.blocks)  # type: ignore[arg-type]  # ModuleList has no item type


class SimulatedDenoiser(RecordingSession):
    """A session of a denoiser that :func:`rtgen.fidelity.simulated_model.simulate` made."""

    def __init__(self, config: ModelConfig, layered: LayeredDenoiser, ring: KVCacheFormat | None = None) -> None:
        super().__init__(config, layered, PROCESSOR, ring)

    def run(self) -> None:
        super().run()
        self.recorded.clear()  # of streams that are only watched, nothing is kept


class SimulatedBackend:
    """The text encoder and the decoder of ``others``, a simulated denoiser between them."""

    name = "simulation"

    def __init__(self, others: Backend, denoiser: Session) -> None:
        self.device = others.device
        self._others, self._denoiser = others, denoiser

    def open(self, component: str) -> Session:
        return self._denoiser if component == "denoiser" else BridgedSession(self._others.open(component))

    def close(self) -> None:
        self._others.close()
        self._denoiser.close()


class BridgedSession:
    """A session that takes buffers from sessions of other backends too, by way of the host."""

    def __init__(self, session: Session) -> None:
        self.component: ComponentEntry = session.component
        self._session = session

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self._session.allocate(sizes)

    def write(self, name: str, value: Array) -> None:
        self._session.write(name, value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        self._session.write(name, source.read(source_name))

    def run(self) -> None:
        self._session.run()

    def read(self, name: str) -> Array:
        return self._session.read(name)

    def reset(self) -> None:
        self._session.reset()

    def close(self) -> None:
        self._session.close()
