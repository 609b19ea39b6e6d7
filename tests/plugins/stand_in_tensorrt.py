"""The few classes of TensorRT's module that plugins are made of, for machines that cannot load it.

They hold what the real ones hold. That the real ones take the plugins is what ``tests/engine/test_plugin_engines.py``
shows.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


class Interface:
    def __init__(self) -> None:
        self.is_made = True


@dataclass
class PluginField:
    name: str
    data: Any
    type: str


@dataclass
class PluginTensorDesc:
    dims: tuple[int, ...] = ()
    type: Any = None
    format: str = "linear"


class Registry:
    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        key = (creator.name, creator.plugin_version, namespace)
        return self.creators.setdefault(key, creator) is creator


class Module(SimpleNamespace):
    __hash__ = object.__hash__  # as modules have


def module():
    """A new one, with a registry of its own: ``get_plugin_registry().creators``."""
    types = ("FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "UINT8", "BOOL")
    registry = Registry()
    return Module(
        IPluginV3=type("IPluginV3", (Interface,), {}),
        IPluginV3OneCore=type("IPluginV3OneCore", (Interface,), {}),
        IPluginV3OneBuildV2=type("IPluginV3OneBuildV2", (Interface,), {}),
        IPluginV3OneRuntime=type("IPluginV3OneRuntime", (Interface,), {}),
        IPluginCreatorV3One=type("IPluginCreatorV3One", (Interface,), {}),
        PluginField=PluginField,
        PluginFieldCollection=list,
        PluginFieldType=SimpleNamespace(INT32="int32", FLOAT32="float32"),
        PluginTensorDesc=PluginTensorDesc,
        DataType=SimpleNamespace(**{name: SimpleNamespace(name=name) for name in types}),
        TensorFormat=SimpleNamespace(LINEAR="linear", CHW4="chw4"),
        DimsExprs=list,
        TensorRTPhase=SimpleNamespace(BUILD="build", RUNTIME="runtime"),
        get_plugin_registry=lambda: registry,
    )
