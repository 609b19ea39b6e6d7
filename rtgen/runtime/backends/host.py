"""Packages whose text encoder is too large for the GPU: it runs on the processor, everything else on the device."""

from typing import Final

from rtgen.engine.package import Package
from rtgen.runtime.session import Backend, Session

_BY_THEMSELVES: Final = ("onnxruntime", "torch")
"""Backends that open host components, too."""


class HostBackend:
    """A device's backend that opens the package's host components with ONNX Runtime instead."""

    def __init__(self, package: Package, device: Backend) -> None:
        from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend

        self.name, self.device = device.name, device.device
        self._package, self._device, self._host = package, device, OnnxRuntimeBackend(package)

    def open(self, component: str) -> Session:
        entry = self._package.manifest.components[component]  # type: ignore[index]  # a KeyError is right
        return (self._host if entry.runs_on == "host" else self._device).open(component)

    def close(self) -> None:
        self._host.close()
        self._device.close()


def with_host_components(package: Package, device: Backend) -> Backend:
    """``device``, or one that also serves the components of the package that run on the host."""
    entries = package.manifest.components.values()
    if device.name in _BY_THEMSELVES or all(entry.runs_on == "device" for entry in entries):
        return device
    return HostBackend(package, device)
