"""Let TensorRT take a plugin for a node instead of its function body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from rtgen.data_types import DataType
from rtgen.plugins.base import DOMAIN, Attributes, Plugin
from rtgen.plugins.tensorrt_plugin import NAMESPACE, VERSION

_TYPES: Mapping[DataType, ir.DataType] = {
    "float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32, "int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8, "bool": ir.DataType.BOOL,
}  # fmt: skip
_MARKS = {"plugin_namespace": NAMESPACE, "plugin_version": VERSION}


@dataclass(frozen=True)
class PluginNode:
    """A node that TensorRT takes a plugin for."""

    plugin: str
    attributes: Attributes
    """All of the plugin's, with the defaults of those that the node does not give."""


class MarkPlugins(ir.passes.InPlacePass):
    """1. A node whose plugin has a kernel gets the attributes that TensorRT finds a plugin by. They win over the
       function that is attached to the model; every other runtime executes the function and ignores them.

    2. It gets all of the plugin's attributes, for TensorRT knows no defaults.

    3. A node with an input of another type than the kernel takes keeps its function body alone.
    """

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        super().__init__()
        self.plugins = {plugin.name: plugin for plugin in plugins if plugin.kernel is not None}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        marked = False
        for node in model.graph:
            plugin = self.plugins.get(node.op_type) if node.domain == DOMAIN else None
            if plugin is not None and _takes(plugin, node):  # rule 3
                for name, value in _MARKS.items():  # rule 1
                    node.attributes[name] = ir.AttrString(name, value)
                for name, default in plugin.attributes.items():  # rule 2
                    node.attributes.setdefault(name, _attribute(name, default))
                marked = True
        return ir.passes.PassResult(model, modified=marked)


def marked_nodes(model: ir.Model, plugins: Iterable[Plugin]) -> list[PluginNode]:
    """The nodes that :class:`MarkPlugins` marked, in order."""
    known = {plugin.name: plugin for plugin in plugins}
    return [
        PluginNode(node.op_type, attributes_of(known[node.op_type], node))
        for node in model.graph
        if node.domain == DOMAIN and _MARKS.keys() <= node.attributes.keys()
    ]


def _takes(plugin: Plugin, node: ir.Node) -> bool:
    """Whether no input is known to be of another type than the kernel's."""
    found = [None if value is None else value.dtype for value in node.inputs]
    wanted = [_TYPES[name] for name in plugin.input_types]
    return len(found) == len(wanted) and all(dtype in (None, kind) for dtype, kind in zip(found, wanted, strict=True))


def _attribute(name: str, value: int | float) -> ir.Attr:
    return ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)


def attributes_of(plugin: Plugin, node: ir.Node) -> dict[str, int | float]:
    """All of a plugin's attributes: the node's own, and defaults."""
    given = {name: node.attributes[name].value for name in plugin.attributes if name in node.attributes}
    return {name: type(default)(given.get(name, default)) for name, default in plugin.attributes.items()}
