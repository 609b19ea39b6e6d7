"""What a plugin declares. See docs/plugins.md for the form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import onnx

    from rtgen.data_types import DataType
    from rtgen.plugins.loader import LoadedKernels

DOMAIN = "rtgen"
DOMAIN_VERSION = 1

SCRATCH_ALIGNMENT = 256
"""Bytes; scratch memory begins at a multiple of it, and so does each of its parts."""

Attributes = Mapping[str, int | float]
Shape = Sequence[Any]
"""Dimensions: integers, or TensorRT's expressions of them while a network is built."""


@dataclass(frozen=True)
class KernelSource:
    """A CUDA source and the macros it is compiled with: one cubin a GPU."""

    file: str
    """In ``plugins/``."""
    defines: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The cubin's name, without its ending: the source and each macro."""
        stem = self.file.removesuffix(".cu")
        return "-".join([stem, *(f"{name.lower()}{value}" for name, value in self.defines)])


@dataclass(frozen=True)
class TensorView:
    """A contiguous tensor in device memory."""

    address: int
    shape: tuple[int, ...]
    dtype: DataType


def scratch_places(sizes: Sequence[int]) -> list[int]:
    """Where parts of scratch memory of these sizes begin, in bytes, and last the size of all."""
    places = [0]
    for size in sizes:
        places.append(-(-(places[-1] + size) // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT)
    return places


class Kernel(Protocol):
    """The CUDA side of a plugin. TensorRT's class and the torch op both launch through it."""

    def sources(self, attributes: Attributes, compute_capability: str) -> tuple[KernelSource, ...]:
        """What must be compiled for a node with these attributes on a GPU."""

    def workspace(self, inputs: Sequence[Shape], attributes: Attributes, compute_capability: str) -> int:
        """Bytes of scratch memory for inputs of these shapes (integers); at the greatest shapes the greatest."""

    def launch(
        self,
        kernels: LoadedKernels,
        stream: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        workspace: int,
        attributes: Attributes,
    ) -> None:
        """Enqueue everything on ``stream``. ``workspace`` is the address of the scratch memory, a multiple of
        :data:`SCRATCH_ALIGNMENT`.

        No host reads, no allocation: the calls are captured in CUDA graphs.
        """


@dataclass(frozen=True)
class Output:
    """Type and shape of an output: the type of an input, and dimensions of inputs as (input, axis)."""

    type_of: int
    shape: tuple[tuple[int, int], ...]
    alias: int | None = None
    """The input whose memory the output shares: it is updated in place."""


@dataclass(frozen=True)
class Plugin:
    """An operator of domain ``rtgen``.

    ``body`` is a FunctionProto in ONNX's text form, over standard ops: any ONNX runtime can execute the node through
    it, and it is the reference that kernels are tested against.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    """Names and defaults."""
    kernel: Kernel | None = None
    results: tuple[Output, ...] = ()
    """One for each of ``outputs``, where there is a kernel."""
    input_types: tuple[DataType, ...] = ()
    """One for each of ``inputs``, where there is a kernel."""

    def function(self) -> onnx.FunctionProto:
        """The parsed function body, to be added to a model that uses the node."""
        import onnx.parser

        return onnx.parser.parse_function(self.body)

    def schema(self) -> onnx.defs.OpSchema:
        """The operator's schema; tensors of any type, since the body checks them."""
        from onnx import helper
        from onnx.defs import OpSchema

        types = [f"tensor({kind})" for kind in ("float", "float16", "bfloat16", "int64", "int8", "uint8", "int4")]
        return OpSchema(
            self.name,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=[OpSchema.FormalParameter(name, f"T{index}") for index, name in enumerate(self.inputs)],
            outputs=[OpSchema.FormalParameter(name, f"U{index}") for index, name in enumerate(self.outputs)],
            type_constraints=[
                *((f"T{index}", types, "") for index in range(len(self.inputs))),
                *((f"U{index}", types, "") for index in range(len(self.outputs))),
            ],
            attributes=[
                OpSchema.Attribute(name, helper.make_attribute(name, default))
                for name, default in self.attributes.items()
            ],
        )
