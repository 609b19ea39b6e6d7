"""What a backend offers the pipeline: components with named buffers, run in order.

The pipeline knows only these protocols; ``rtgen.runtime.backends`` maps names to implementations.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rtgen.engine.manifest import ComponentEntry

Array = NDArray[Any]


class Session(Protocol):
    """One component of a package, ready to run.

    Buffers are named after the component's inputs and outputs and live on the backend's device. Work is enqueued in
    call order; only :meth:`read` waits for it.
    """

    component: ComponentEntry

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """Make the buffers for these values of the symbolic dimensions and choose the optimization profile.

        States start as zeros. Calling it again with other sizes replaces the buffers.
        Raises rtgen.errors.SizeError for sizes no profile serves, MemoryPlanError when the device has no room.
        """

    def write(self, name: str, value: Array) -> None:
        """Copy a host array into an input. Shape and dtype must be those of the buffer (ValueError otherwise)."""

    def copy(self, name: str, source: "Session", source_name: str) -> None:
        """Copy another session's buffer (or one's own) into an input, on the device."""

    def run(self) -> None:
        """Enqueue one execution, then let each state's output become its input."""

    def read(self, name: str) -> Array:
        """Wait, and return an output as a host array that later runs do not change."""

    def reset(self) -> None:
        """Set the states back to zeros."""

    def close(self) -> None:
        """Release the device memory. Idempotent."""


class Backend(Protocol):
    """Opens the components of one package on one device."""

    name: str
    device: str
    """For people: such as ``NVIDIA GeForce RTX 4080 Laptop GPU`` or ``CPU, 8 threads``."""

    def open(self, component: str) -> Session:
        """Load ``text_encoder``, ``denoiser`` or ``decoder``."""

    def close(self) -> None:
        """Release everything. Idempotent."""


class OverlappingBackend(Backend, Protocol):
    """A backend whose components may run at the same time, each on a thread of its own."""

    overlaps: bool
    """Whether that pays here."""


def can_overlap(backend: Backend) -> TypeGuard[OverlappingBackend]:
    """Whether two components of ``backend`` may run at once. One that says nothing of it runs them in turn."""
    return hasattr(backend, "overlaps")


def check_write(name: str, value: Array, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
    """Refuse an array that does not fit its buffer; silent broadcasting or casting would hide pipeline errors."""
    if value.shape != shape or value.dtype != dtype:
        raise ValueError(f"'{name}' takes {dtype}{list(shape)}, got {value.dtype}{list(value.shape)}")
