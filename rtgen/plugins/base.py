"""What a plugin declares. See docs/plugins.md for the form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

DOMAIN = "rtgen"
DOMAIN_VERSION = 1


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
    attributes: Mapping[str, int] = field(default_factory=dict)
    """Names and defaults."""

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
