"""Device memory for intermediate results, which engines that take turns share."""

from typing import Protocol

from rtgen.runtime.backends.device import DeviceBuffer


class Allocator(Protocol):
    """What an arena asks of a device."""

    def allocate(self, size: int) -> DeviceBuffer: ...

    def free(self, buffer: DeviceBuffer) -> None: ...


class Arena:
    """One block of device memory, as large as the greatest demand on it.

    Engines that are enqueued on one stream run one after the other, and what lies in the arena means nothing between
    two runs. Engines that are to overlap need an arena each.
    """

    def __init__(self, device: Allocator) -> None:
        self._device = device
        self._demand = 0
        self._block: DeviceBuffer | None = None

    def reserve(self, size: int) -> None:
        """Announce an engine that needs ``size`` bytes. Nothing is allocated."""
        self._demand = max(self._demand, size)

    def block(self) -> DeviceBuffer | None:
        """The memory, or None if nobody needs any.

        Allocated when first asked for, and replaced once a greater demand has come: a user compares it with the block
        it holds before each run. Raises MemoryPlanError when there is too little.
        """
        if self._block is not None and self._block.size < self._demand:
            self.close()
        if self._block is None and self._demand:
            self._block = self._device.allocate(self._demand)
        return self._block

    def close(self) -> None:
        """Release the memory once the work enqueued so far is done. Idempotent."""
        if self._block is not None:
            self._device.free(self._block)
        self._block = None
