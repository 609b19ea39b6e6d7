"""The TensorRT class of every plugin, executed on a CUDA GPU with hand-made descriptions and torch's tensors.

TensorRT's module is its stand-in, and the real one wherever it can be imported. What TensorRT itself would do, giving
addresses of tensors and of scratch memory and a stream, is done here; results are compared with the torch op on the
processor.
"""

import importlib

import pytest

torch = pytest.importorskip("torch")

from rtgen.data_types import TENSORRT_TYPES  # noqa: E402
from rtgen.plugins.compiler import compile_kernel  # noqa: E402
from rtgen.plugins.registry import PLUGINS  # noqa: E402
from rtgen.plugins.tensorrt_plugin import PackageKernels, plugin_class  # noqa: E402
from tests.plugins import stand_in_tensorrt  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

HALF, BYTE, LONG = torch.float16, torch.int8, torch.int64


def half(*shape, scale=1.0, mean=0.0):
    return (torch.randn(shape) * scale + mean).to(HALF)


def w4a4(tokens=77, columns=256, rows=192, rank=32):
    """x, codes, scales, pre_scale, shift, low_rank_down, low_rank_up, bias."""
    return [
        half(1, tokens, columns), torch.randint(-128, 128, (rows, columns // 2), dtype=BYTE),
        half(rows, columns // 64, scale=0.01), half(columns, scale=0.1, mean=1), half(columns, scale=0.1),
        half(rank, columns, scale=0.05), half(rows, rank, scale=0.05), half(rows),
    ]  # fmt: skip


def gated(tokens=78, rows=192):
    """The same with gate, one row for every 26 tokens, and residual."""
    return [*w4a4(tokens, rows=rows), half(1, 3, rows).float(), half(1, tokens, rows).float()]


def attention_conv(channels=384, out_channels=384):
    return [
        half(2, 65, 3 * channels), half(out_channels, channels, scale=channels**-0.5), half(out_channels),
        half(1, out_channels, 2, 5, 13),
    ]  # fmt: skip


def ring_attention(heads=3, frame=33, frames=9, width=128, bits=4):
    """The first chunk of a stream, of three frames, into an empty ring."""
    chunk = [half(1, heads, 3 * frame, width) for _ in range(3)]
    rows = frames * frame
    states = [torch.zeros(2, heads, rows, width * bits // 8, dtype=BYTE), half(2, heads, rows) * 0]
    states += [half(2, heads, width) * 0, torch.zeros(1, dtype=LONG)]
    return [*chunk, *states, *(torch.tensor([n], dtype=LONG) for n in (0, 3 * frame, frame))]


CASES = {
    "W4A4Linear": (w4a4, {"rotate": 1}),
    "W4A4LinearGated": (gated, {"rotate": 0}),
    "AttentionConv": (attention_conv, {"channels": 384}),
    "QuantizedKVCacheAttention": (ring_attention, {"bits": 4, "head_dim": 128}),
}
OPS = {
    "W4A4Linear": ("w4a4_linear", "torch_op", "w4a4_linear"),
    "W4A4LinearGated": ("w4a4_linear", "gated_torch_op", "w4a4_linear_gated"),
    "AttentionConv": ("attention_conv", "torch_op", "attention_conv"),
    "QuantizedKVCacheAttention": (
        "quantized_kv_cache_attention", "torch_op", "quantized_kv_cache_attention",
    ),
}  # fmt: skip
"""Module of the operator, the function that registers it, and its name in ``torch.ops.rtgen``."""
ONLY_COMPILED_FOR = {"AttentionConv": {"channels"}, "QuantizedKVCacheAttention": {"head_dim"}}
"""Attributes that the torch op takes from its tensors."""


@pytest.fixture(params=["stand-in", "tensorrt_rtx", "tensorrt"])
def module(request):
    if request.param == "stand-in":
        return stand_in_tensorrt.module()
    try:
        return importlib.import_module(request.param)
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"{request.param} is not here: {error}")


def capability():
    return "{}.{}".format(*torch.cuda.get_device_capability())


def kernels_of(plugin, attributes):
    sources = plugin.kernel.sources(attributes, capability())
    return PackageKernels(
        capability(), lambda: {source.name: compile_kernel(source, capability()).code for source in sources}
    )


def describe(module, tensor):
    made = module.PluginTensorDesc()
    made.dims = tuple(tensor.shape)
    made.type = getattr(module.DataType, TENSORRT_TYPES[str(tensor.dtype).removeprefix("torch.")])
    made.format = module.TensorFormat.LINEAR
    return made


def enqueue(module, made, inputs, outputs, scratch, stream):
    """As TensorRT does it."""
    given, results = ([describe(module, tensor) for tensor in tensors] for tensors in (inputs, outputs))
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (inputs, outputs)]
    made.enqueue(given, results, *addresses, scratch.data_ptr(), stream.cuda_stream)


def execute(module, made, inputs, outputs, size):
    """On a stream of its own."""
    scratch = poisoned_scratch(size)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    enqueue(module, made, inputs, outputs, scratch, stream)
    torch.cuda.synchronize()


def poisoned_scratch(size):
    """Full of NaN, whatever is kept there."""
    return torch.full((max(size, 1),), 255, dtype=torch.uint8, device="cuda")


def poisoned(plugin, inputs):
    """Outputs: those that are updated in place are the inputs themselves."""
    made = []
    for result in plugin.results:
        if result.alias is not None:
            made.append(inputs[result.alias])
            continue
        shape = [inputs[index].shape[axis] for index, axis in result.shape]
        made.append(torch.full(shape, float("nan"), dtype=inputs[result.type_of].dtype, device="cuda"))
    return made


def reference(plugin, inputs, attributes):
    """The torch op on the processor."""
    module, make, name = OPS[plugin.name]
    getattr(importlib.import_module(f"rtgen.plugins.{module}"), make)()
    taken = {name: value for name, value in attributes.items() if name not in ONLY_COMPILED_FOR.get(plugin.name, ())}
    found = getattr(torch.ops.rtgen, name)(*inputs, **taken)
    return list(found) if isinstance(found, tuple) else [found]


def test_every_plugin_with_a_kernel_has_a_case():
    assert {name for name, plugin in PLUGINS.items() if plugin.kernel is not None} <= CASES.keys()


def prepare(module, name, inputs):
    """The object that TensorRT would execute, and the bytes of scratch memory that it asks for."""
    plugin = PLUGINS[name]
    attributes = {**plugin.attributes, **CASES[name][1]}
    made = plugin_class(module)(plugin, kernels_of(plugin, attributes), attributes)
    dynamic = [type("Dynamic", (), {"max": tuple(tensor.shape)}) for tensor in inputs]
    return made.attach_to_context(None), made.get_workspace_size(dynamic, [])


def check(outputs, expected):
    for found, wanted in zip(outputs, expected, strict=True):
        found, wanted = found.cpu().float(), wanted.float()
        assert found.isfinite().all()
        if wanted.abs().max() > 0:
            assert ((found - wanted).norm() / wanted.norm()).item() < 5e-3


@pytest.mark.parametrize("name", CASES)
def test_execution_gives_what_the_torch_op_gives(module, name):
    torch.manual_seed(0)
    make, given = CASES[name]
    inputs = make()
    expected = reference(PLUGINS[name], inputs, given)
    on_gpu = [tensor.cuda() for tensor in inputs]
    outputs = poisoned(PLUGINS[name], on_gpu)
    made, size = prepare(module, name, inputs)
    execute(module, made, on_gpu, outputs, size)
    check(outputs, expected)


def chunks_of_a_stream():
    """The ring's inputs chunk by chunk: the window is full after three, then the oldest frames are overwritten. The
    caller puts in the states that the chunk before left."""
    tokens = 99
    for number in range(5):
        inputs = ring_attention()
        inputs[6], inputs[7] = torch.tensor([number % 3 * tokens]), torch.tensor([min(number + 1, 3) * tokens])
        yield inputs


@pytest.mark.parametrize("name", CASES)
def test_a_cuda_graph_of_an_execution_replays_on_new_numbers(module, name):
    torch.manual_seed(1)
    plugin, (make, given) = PLUGINS[name], CASES[name]
    static = [tensor.cuda() for tensor in make()]
    outputs = poisoned(plugin, static)
    made, size = prepare(module, name, static)
    execute(module, made, static, outputs, size)  # loads the kernels
    scratch, graph = poisoned_scratch(size), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue(module, made, static, outputs, scratch, torch.cuda.current_stream())
    states = {result.alias: index for index, result in enumerate(plugin.results) if result.alias is not None}
    expected = []
    for inputs in chunks_of_a_stream() if states else (make() for _ in range(2)):
        if expected:
            for position, index in states.items():
                inputs[position] = expected[index]
        for target, source in zip(static, inputs, strict=True):
            target.copy_(source)
        for output in (output for output, result in zip(outputs, plugin.results, strict=True) if result.alias is None):
            output.fill_(float("nan"))
        graph.replay()
        expected = reference(plugin, inputs, given)
        check(outputs, expected)


def test_a_failure_in_execution_is_an_error_and_not_a_crash(module):
    plugin = next(plugin for plugin in PLUGINS.values() if plugin.kernel is not None)
    kernels = PackageKernels(capability(), dict)  # a package without the kernels
    made = plugin_class(module)(plugin, kernels, {**plugin.attributes, **CASES[plugin.name][1]})
    inputs = [tensor.cuda() for tensor in CASES[plugin.name][0]()]
    with pytest.raises(Exception, match="is missing"):
        execute(module, made, inputs, poisoned(plugin, inputs), 1 << 20)
    assert kernels.failure is not None
    assert torch.ones(2, device="cuda").sum().item() == 2  # the context is sound
