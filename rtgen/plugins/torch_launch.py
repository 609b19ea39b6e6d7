"""Launching a plugin's kernel on torch's tensors: what torch ops do on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from rtgen.plugins.base import Attributes, Plugin, TensorView
from rtgen.plugins.loader import current_kernels

if TYPE_CHECKING:
    from torch import Tensor

    from rtgen.data_types import DataType


def launch_on_torch(
    plugin: Plugin, inputs: Sequence[Tensor], outputs: Sequence[Tensor], attributes: Attributes
) -> None:
    """Enqueue the plugin on torch's current stream; all tensors are contiguous and on the current device.

    An output with an alias is the very tensor that is its input. Raises NoGpuError without a driver, BuildError when a
    kernel does not compile for this GPU.
    """
    import torch

    assert plugin.kernel is not None
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    shapes = [tuple(tensor.shape) for tensor in inputs]
    size = plugin.kernel.workspace(shapes, attributes, capability)
    scratch = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")  # torch aligns to 512 bytes
    kernels = current_kernels(plugin.kernel.sources(attributes, capability))
    stream = torch.cuda.current_stream().cuda_stream
    plugin.kernel.launch(kernels, stream, views(inputs), views(outputs), scratch.data_ptr(), attributes)


def views(tensors: Sequence[Tensor]) -> tuple[TensorView, ...]:
    """The tensors as kernels take them. Raises ValueError for one that is not contiguous."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"a kernel takes contiguous tensors, not strides {tensor.stride()} of {tensor.shape}")
    return tuple(
        TensorView(tensor.data_ptr(), tuple(tensor.shape), cast("DataType", str(tensor.dtype).removeprefix("torch.")))
        for tensor in tensors
    )
