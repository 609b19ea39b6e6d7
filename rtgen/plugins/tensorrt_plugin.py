"""Plugins as TensorRT takes them: one ``IPluginV3`` and one creator for all, driven by what a plugin declares.

TensorRT itself is handed in (``rtgen/engine/trt.py`` imports it), so the same code serves both flavours. Creators are
registered once a process; what they make launches the kernels that were named last (:func:`register`).

Methods that TensorRT calls may raise: its bindings turn an exception into the error of the call that led there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar, Final

from rtgen.data_types import TENSORRT_TYPES, DataType
from rtgen.errors import PackageInvalidError
from rtgen.plugins.base import Attributes, Plugin, TensorView
from rtgen.plugins.loader import LoadedKernels

NAMESPACE: Final = "rtgen"
VERSION: Final = "1"
"""With the name, what a plugin is found by: the attributes ``plugin_namespace`` and ``plugin_version`` of a node."""

Module = Any
"""``tensorrt_rtx`` or ``tensorrt``."""

_NAMES: Mapping[str, DataType] = {member: name for name, member in TENSORRT_TYPES.items()}
_creators: dict[tuple[Module, str], Any] = {}
"""TensorRT keeps no reference to them."""


class PackageKernels:
    """The cubins of a package, read and loaded when a plugin is first executed: building needs no GPU."""

    def __init__(self, compute_capability: str, read: Callable[[], Mapping[str, bytes]]) -> None:
        """``read`` gives the cubins by :attr:`rtgen.plugins.base.KernelSource.name`."""
        self.compute_capability = compute_capability
        self.failure: Exception | None = None
        """Why a plugin could not be executed; TensorRT itself only says that it failed."""
        self._read = read

    @cached_property
    def loaded(self) -> LoadedKernels:
        """On the device that is current at the first call."""
        return LoadedKernels(self._read())


def register(module: Module, plugins: Iterable[Plugin], kernels: PackageKernels) -> None:
    """Make TensorRT know the plugins that have a kernel; those that it creates from now on launch ``kernels``.

    Comes before a network with their nodes is parsed, or an engine with them deserialized.
    """
    for plugin in plugins:
        if plugin.kernel is not None:
            _creator(module, plugin).kernels = kernels


def _creator(module: Module, plugin: Plugin) -> Any:
    key = (module, plugin.name)
    if key not in _creators:
        creator = _creator_class(module)(plugin)
        if not module.get_plugin_registry().register_creator(creator, NAMESPACE):
            raise PackageInvalidError(f"TensorRT has another plugin {NAMESPACE}::{plugin.name}, of something else")
        _creators[key] = creator
    return _creators[key]


@cache
def _creator_class(module: Module) -> Any:
    class Creator(module.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self, plugin: Plugin) -> None:
            module.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = plugin.name, NAMESPACE, VERSION
            self.field_names = _fields(module, plugin.attributes)
            self.plugin = plugin
            self.kernels: PackageKernels | None = None

        def create_plugin(self, name: str, fields: Iterable[Any], phase: Any) -> Any:
            assert self.kernels is not None  # set by register()
            return plugin_class(module)(self.plugin, self.kernels, _attributes(self.plugin, fields))

    return Creator


@cache
def plugin_class(module: Module) -> Any:
    """The ``IPluginV3`` of all plugins: made of a plugin, its kernels and the attributes of a node."""
    interfaces = (
        module.IPluginV3, module.IPluginV3OneCore, module.IPluginV3OneBuildV2, module.IPluginV3OneRuntime,
    )  # fmt: skip
    return type("TensorRTPlugin", (_Methods, *interfaces), {"module": module, "interfaces": interfaces})


class _Methods:
    """What TensorRT calls. Without its interfaces, which are there once the library is."""

    module: ClassVar[Module]
    interfaces: ClassVar[tuple[Any, ...]]

    def __init__(self, plugin: Plugin, kernels: PackageKernels, attributes: Attributes) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.plugin_name, self.plugin_namespace, self.plugin_version = plugin.name, NAMESPACE, VERSION
        self.num_outputs = len(plugin.outputs)
        self._plugin, self._kernels, self._attributes = plugin, kernels, attributes

    def get_capability_interface(self, type: Any) -> Any:
        return self

    def clone(self) -> Any:
        return type(self)(self._plugin, self._kernels, self._attributes)

    def get_fields_to_serialize(self) -> Any:
        return _fields(self.module, self._attributes)

    # While a network is built:

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        return [input_types[result.type_of] for result in self._plugin.results]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        shapes = [[inputs[index][axis] for index, axis in result.shape] for result in self._plugin.results]
        return [self.module.DimsExprs(shape) for shape in shapes]

    def get_aliased_input(self, output: int) -> int:
        alias = self._plugin.results[output].alias
        return -1 if alias is None else alias

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        found = tensors[position].desc
        name = _tensor_types(self._plugin)[position]
        return bool(_NAMES.get(found.type.name) == name and found.format == self.module.TensorFormat.LINEAR)

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        pass

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        assert self._plugin.kernel is not None
        shapes = [tuple(tensor.max) for tensor in inputs]
        return self._plugin.kernel.workspace(shapes, self._attributes, self._kernels.compute_capability)

    # While an engine runs:

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def set_tactic(self, tactic: int) -> None:
        pass

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        pass

    def enqueue(
        self,
        input_descriptions: Sequence[Any],
        output_descriptions: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        assert self._plugin.kernel is not None
        given, made = _views(input_descriptions, inputs), _views(output_descriptions, outputs)
        try:
            self._plugin.kernel.launch(self._kernels.loaded, stream, given, made, workspace, self._attributes)
        except Exception as error:
            self._kernels.failure = error
            raise


def _tensor_types(plugin: Plugin) -> tuple[DataType, ...]:
    """Of inputs and outputs, as TensorRT counts them."""
    return (*plugin.input_types, *(plugin.input_types[result.type_of] for result in plugin.results))


def _views(descriptions: Sequence[Any], addresses: Sequence[int]) -> tuple[TensorView, ...]:
    return tuple(
        TensorView(int(address), tuple(description.dims), _NAMES[description.type.name])
        for description, address in zip(descriptions, addresses, strict=True)
    )


def _fields(module: Module, attributes: Attributes) -> Any:
    """Attributes as TensorRT carries them: 32-bit integers and floats, arrays of one."""
    import numpy as np

    kinds: Mapping[type, tuple[Any, Any]] = {
        int: (np.int32, module.PluginFieldType.INT32), float: (np.float32, module.PluginFieldType.FLOAT32),
    }  # fmt: skip
    fields = []
    for name, value in attributes.items():
        dtype, kind = kinds[type(value)]
        fields.append(module.PluginField(name, np.array([value], dtype), kind))
    return module.PluginFieldCollection(fields)


def _attributes(plugin: Plugin, fields: Iterable[Any]) -> dict[str, int | float]:
    """Of a node, or of a plugin in an engine: what the fields say, and the defaults of the others."""
    found = dict(plugin.attributes)
    for field in fields:
        if field.name in found:
            found[field.name] = type(found[field.name])(field.data.reshape(-1)[0])
    return found
