"""The one TensorRT class of all plugins, driven by what a plugin declares; TensorRT's own are stand-ins here."""

import numpy as np
import pytest

from rtgen.engine import trt
from rtgen.errors import PackageInvalidError
from rtgen.plugins import tensorrt_plugin
from rtgen.plugins.base import Output, Plugin, TensorView
from rtgen.plugins.tensorrt_plugin import PackageKernels, plugin_class, register
from tests.plugins.stand_in_tensorrt import module as make_module


class Launches:
    """A kernel that writes down what it is launched with."""

    def __init__(self):
        self.calls = []

    def sources(self, attributes, compute_capability):
        return ()

    def workspace(self, inputs, attributes, compute_capability):
        return inputs[0][0] * inputs[0][1] * attributes["factor"] + round(float(compute_capability))

    def launch(self, *arguments):
        if arguments[-1]["factor"] < 0:
            raise ValueError("a factor below zero")
        self.calls.append(arguments)


class Loaded(PackageKernels):
    """Without a GPU to load cubins on."""

    loaded = "loaded kernels"


@pytest.fixture
def plugin():
    return Plugin(
        "Scale",
        ("x", "state"),
        ("y", "state_out"),
        body="",
        attributes={"factor": 2, "gain": 0.5},
        kernel=Launches(),
        results=(Output(0, ((0, 0), (1, 1))), Output(1, ((1, 0), (1, 1)), alias=1)),
        input_types=("float16", "int8"),
    )


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(tensorrt_plugin, "_creators", {})
    return make_module()


@pytest.fixture
def create(module, plugin):
    """An instance as TensorRT makes it for a node with these attributes."""

    def create_(kernels=None, **attributes):
        register(module, [plugin], kernels or Loaded("8.9", dict))
        (creator,) = module.get_plugin_registry().creators.values()
        fields = [module.PluginField(name, np.array([value]), "") for name, value in attributes.items()]
        return creator.create_plugin("node", fields, module.TensorRTPhase.BUILD)

    return create_


def described(module, *tensors):
    return [module.PluginTensorDesc(shape, getattr(module.DataType, name)) for shape, name in tensors]


def enqueue(module, made, **changes):
    given = described(module, ((4, 64), "HALF"), ((8, 64), "INT8"))
    arguments = {
        "input_descriptions": given, "output_descriptions": described(module, ((4, 64), "HALF"), ((8, 64), "INT8")),
        "inputs": [4096, 8192], "outputs": [12288, 8192], "workspace": 16384, "stream": 7,
    }  # fmt: skip
    return made.enqueue(**(arguments | changes))


def test_a_plugin_is_found_by_name_namespace_and_version(module, plugin, create):
    made = create()
    assert list(module.get_plugin_registry().creators) == [("Scale", "1", "rtgen")]
    assert (made.plugin_name, made.plugin_namespace, made.plugin_version) == ("Scale", "rtgen", "1")
    assert made.num_outputs == 2 and made.get_capability_interface("core") is made


def test_plugins_without_a_kernel_stay_unknown(module):
    register(module, [Plugin("Scale", ("x",), ("y",), body="")], Loaded("8.9", dict))
    assert not module.get_plugin_registry().creators


def test_outputs_are_those_that_are_declared(module, create):
    made = create()
    assert made.get_output_data_types(["HALF", "INT8"]) == ["HALF", "INT8"]
    assert made.get_output_shapes([["n", "k"], ["s", "m"]], [], None) == [["n", "m"], ["s", "m"]]
    assert [made.get_aliased_input(output) for output in (0, 1)] == [-1, 1]


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("name", ["HALF", "INT8", "FLOAT", "BF16"])
@pytest.mark.parametrize("layout", ["linear", "chw4"])
def test_only_the_declared_types_in_rows_are_taken(module, create, position, name, layout):
    wanted = ("HALF", "INT8", "HALF", "INT8")
    tensor = type("Dynamic", (), {"desc": module.PluginTensorDesc((), getattr(module.DataType, name), layout)})
    taken = create().supports_format_combination(position, [tensor] * 4, 2)
    assert taken == (name == wanted[position] and layout == "linear")


def test_scratch_memory_is_that_of_the_greatest_shapes_on_the_target(module, create):
    tensor = type("Dynamic", (), {"desc": None, "min": (1, 64), "opt": (4, 64), "max": (32, 64)})
    assert create(factor=3).get_workspace_size([tensor, tensor], []) == 32 * 64 * 3 + 9
    assert create(Loaded("12.0", dict)).get_workspace_size([tensor, tensor], []) == 32 * 64 * 2 + 12


def test_attributes_survive_an_engine_and_a_clone(module, plugin, create):
    made = create(factor=np.int32(5), plugin_version=1).clone()
    fields = made.get_fields_to_serialize()
    assert [(field.name, field.data.dtype, field.type) for field in fields] == [
        ("factor", np.int32, "int32"),
        ("gain", np.float32, "float32"),
    ]
    enqueue(module, create(**{field.name: field.data[0] for field in fields}).attach_to_context(None))
    attributes = plugin.kernel.calls[0][-1]
    assert attributes == {"factor": 5, "gain": 0.5} and [type(value) for value in attributes.values()] == [int, float]


def test_execution_hands_tensors_scratch_memory_and_stream_to_the_launch_plan(module, plugin, create):
    enqueue(module, create())
    kernels, stream, inputs, outputs, workspace, _ = plugin.kernel.calls[0]
    assert (kernels, stream, workspace) == ("loaded kernels", 7, 16384)
    state = TensorView(8192, (8, 64), "int8")
    assert inputs == (TensorView(4096, (4, 64), "float16"), state)
    assert outputs == (TensorView(12288, (4, 64), "float16"), state)


def test_a_failure_is_raised_and_kept(module, plugin, create):
    kernels = Loaded("8.9", dict)
    with pytest.raises(ValueError, match="below zero"):
        enqueue(module, create(kernels, factor=-1))
    assert str(kernels.failure) == "a factor below zero" and not plugin.kernel.calls


def test_kernels_are_read_when_a_plugin_is_executed_and_not_before(module, create):
    def read():
        raise PackageInvalidError("kernels were read")

    made = create(PackageKernels("8.9", read)).clone()
    with pytest.raises(PackageInvalidError, match="were read"):
        enqueue(module, made)


def test_plugins_of_a_second_package_launch_its_own_kernels(module, plugin, create):
    first, second = Loaded("8.9", dict), Loaded("8.9", dict)
    first.loaded, second.loaded = "first", "second"
    old, new = create(first), create(second)
    enqueue(module, new)
    enqueue(module, old.attach_to_context(None))
    assert [call[0] for call in plugin.kernel.calls] == ["second", "first"]
    assert len(module.get_plugin_registry().creators) == 1


def test_a_name_that_is_taken_is_refused(module, plugin, create, monkeypatch):
    create()
    monkeypatch.setattr(tensorrt_plugin, "_creators", {})
    with pytest.raises(PackageInvalidError, match="rtgen::Scale"):
        create()


@pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_classes_take_the_same(plugin):
    real = trt.load("tensorrt_rtx")
    made = plugin_class(real)(plugin, Loaded("8.9", dict), {"factor": 5, "gain": 0.25}).clone()
    assert (made.plugin_name, made.plugin_namespace, made.plugin_version) == ("Scale", "rtgen", "1")
    assert made.num_outputs == 2
    fields = {field.name: (field.type, field.data.tolist()) for field in made.get_fields_to_serialize()}
    kinds = real.PluginFieldType
    assert fields == {"factor": (kinds.INT32, [5]), "gain": (kinds.FLOAT32, [0.25])}
    dynamic = real.DynamicPluginTensorDesc()
    dynamic.max = (32, 64)
    assert made.get_workspace_size([dynamic, dynamic], []) == 32 * 64 * 5 + 9
    descriptions = []
    for shape, kind in (((4, 64), real.DataType.HALF), ((8, 64), real.DataType.INT8)):
        description = real.PluginTensorDesc()
        description.dims, description.type, description.format = shape, kind, real.TensorFormat.LINEAR
        descriptions.append(description)
        dynamic.desc = description
        position = len(descriptions) - 1
        assert made.supports_format_combination(position, [dynamic] * 4, 2)
        assert not made.supports_format_combination(1 - position, [dynamic] * 4, 2)
    made.enqueue(descriptions, descriptions, [4096, 8192], [12288, 8192], 16384, 7)
    inputs = (TensorView(4096, (4, 64), "float16"), TensorView(8192, (8, 64), "int8"))
    assert plugin.kernel.calls[0][2] == inputs and plugin.kernel.calls[0][-1] == {"factor": 5, "gain": 0.25}
