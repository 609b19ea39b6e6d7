"""The torch backend on a CUDA GPU: streams, graphs and FP8 products give what plain enqueueing gives."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtgen.config.load import match_gpu  # noqa: E402
from rtgen.config.model import DenoiserConfig  # noqa: E402
from rtgen.engine.package import open_package  # noqa: E402
from rtgen.runtime.backends import open_backend  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from rtgen.torch_backend.fp8_linear import CAPABILITY, Fp8Linear  # noqa: E402
from rtgen.torch_backend.fused import FusedDenoiser  # noqa: E402
from rtgen.torch_backend.lanes import CudaLane  # noqa: E402
from rtgen.torch_backend.step_kernels import KernelSteps  # noqa: E402
from rtgen.torch_backend.steps import PlainSteps  # noqa: E402
from tests.torch_backend.fusion import CONFIG, attend, half_model, inputs, relative, with_fp8  # noqa: E402
from tests.torch_backend.packages import torch_package  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
CHUNK = 12


@pytest.fixture
def package(tiny):
    """Builds a package for this GPU, or for whatever ``fields`` of the request say."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    config = match_gpu(torch.cuda.get_device_name(), capability, torch.cuda.mem_get_info()[1] / 2**30)
    if config is None:
        pytest.skip(f"no config has compute capability {capability}")
    return lambda **fields: torch_package(tiny, **({"gpu": config.name, "recipe": "fp16"} | fields))


def frames_of(path, count=7 * CHUNK, **options):
    with Pipeline.open(path, **options) as pipeline:
        return np.concatenate(list(pipeline.stream(PROMPT, seed=4, frames=count)))


def test_graphs_and_streams_change_no_bit(package, monkeypatch):
    path = package()
    found = [frames_of(path, overlap=overlap) for overlap in (True, False)]
    monkeypatch.setattr(CudaLane, "_captured", lambda lane, kind, work: None)
    plain = frames_of(path, overlap=False)
    assert np.array_equal(found[0], plain) and np.array_equal(found[1], plain)


def test_there_is_one_graph_for_each_kind_of_pass(package):
    with Pipeline.open(package(), overlap=False) as pipeline:
        list(pipeline.stream(PROMPT, frames=7 * CHUNK))
        lanes = [pipeline._denoiser.lane, pipeline._decoder.session.lane]
        assert [sorted(lane.graphs) for lane in lanes] == [[27, 54, 81], [0]]  # 3, 6 and 9 frames of 3x3 tokens
        list(pipeline.stream(PROMPT, frames=CHUNK, size=(32, 64)))
        assert sorted(lanes[0].graphs) == [24]  # those of another size are gone


def test_the_gpu_plays_what_the_processor_plays(package, tiny):
    reference = frames_of(torch_package(tiny)).astype(int)
    assert np.abs(frames_of(package()).astype(int) - reference).mean() < 1


def test_a_switched_prompt_and_a_second_stream_give_the_same_bits_again(package):
    with Pipeline.open(package()) as pipeline:
        rounds = []
        for _ in range(2):
            stream = pipeline.stream(PROMPT, seed=1)
            frames = [next(stream) for _ in range(4)]
            pipeline.prompt = OTHER
            rounds.append(np.stack([*frames, next(stream), next(stream)]))
    assert np.array_equal(*rounds)


def test_buffers_pass_between_streams_in_order(package):
    backend = open_backend(open_package(package()))
    sessions = [backend.open("denoiser"), backend.open("decoder")]
    for session in sessions:
        session.allocate({"rows": 3, "columns": 3})
    shape = sessions[0].read("clean").shape
    for value in range(20):
        sessions[0].write("clean", np.full(shape, value, np.float32))
        sessions[1].copy("latents", sessions[0], "clean")
        sessions[0].write("clean", np.full(shape, -1, np.float32))
        assert (sessions[1].read("latents") == value).all()
    backend.close()


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY, reason="needs FP8 tensor cores"
)
def test_an_fp8_product_is_that_of_the_processor_and_can_be_captured():
    torch.manual_seed(0)
    weight = (torch.randn(256, 128) / 12).clamp(-1, 1)
    scale = weight.abs().max() / 448
    parts = {"codes": (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8), "scales": scale}
    parts["input_scale"] = torch.tensor(4.0 / 448)
    bias, x = torch.randn(256).half(), torch.randn(1, 96, 128).half()
    module = Fp8Linear(parts, bias, torch.float16)
    expected = module(x).float()
    module, x = module.cuda(), x.cuda()
    torch.testing.assert_close(module(x).cpu().float(), expected, atol=2e-2, rtol=2e-2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = module(x)
    graph.replay()
    assert torch.equal(captured, module(x))


@pytest.mark.parametrize(("width", "heads", "frames", "tokens"), [(1536, 12, 3, 507), (128, 4, 1, 33), (48, 2, 3, 9)])
@pytest.mark.parametrize("coded", [False, True])
def test_kernels_between_products_are_their_reference(width, heads, frames, tokens, coded):
    capability = torch.cuda.get_device_capability()
    if coded and capability < CAPABILITY:
        pytest.skip("needs conversions to FP8")
    config = DenoiserConfig(dim=width, layers=1, heads=heads, ffn_dim=4 * width)
    kernels, plain = KernelSteps(config, capability), PlainSteps(heads)
    torch.manual_seed(0)
    x, parts = torch.randn(tokens, width, device="cuda") * 3, torch.randn(frames, 6, width, device="cuda")
    halves = [torch.randn(tokens, width, device="cuda").half() for _ in range(3)]
    gains = [1 + torch.randn(width, device="cuda") / 8 for _ in range(2)]
    rotation = torch.randn(tokens, width // heads // 2, 2, device="cuda")
    step = torch.tensor(5 / 448, device="cuda") if coded else None
    shift, scale, gate = parts[:, 0], parts[:, 1], parts[:, 2]
    attention = torch.randn(1, tokens, heads, width // heads, device="cuda").half().transpose(1, 2)

    def outputs(steps):
        stream = x.clone()
        yield steps.norm(stream, None, None, scale, shift, step, 1e-6)
        yield steps.norm(stream, halves[0], gate, gains[0], gains[1], step, 1e-5)
        yield steps.norm(stream, halves[1], None, scale, shift, step, 1e-6)
        yield stream
        yield from steps.heads(tuple(halves), tuple(gains), rotation, 1e-6)
        yield steps.rms(halves[0], gains[0], 1e-6)
        yield steps.merge(attention, step)
        yield steps.merge(attention.contiguous(), step)
        yield steps.gelu(halves[0] * 3, step)
        if step is not None:
            yield steps.encode(halves[0], step)

    for number, (found, expected) in enumerate(zip(outputs(kernels), outputs(plain), strict=True)):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert relative(found, expected) < (4e-3 if found.dtype == torch.float8_e4m3fn else 1e-3), number


@pytest.mark.parametrize("fp8", [False, True])
@torch.inference_mode()
def test_the_fused_denoiser_computes_what_the_modules_do(fp8):
    capability = torch.cuda.get_device_capability()
    if fp8 and capability < CAPABILITY:
        pytest.skip("needs FP8 tensor cores")
    model = with_fp8(half_model()) if fp8 else half_model()
    *given, rotation = inputs()
    expected = model(*given, rotation, attend)
    fused = FusedDenoiser(model.cuda(), KernelSteps(CONFIG, capability))
    *given, rotation = inputs("cuda")
    fused.prepare(given[2])
    assert relative(fused(*given, rotation, attend).cpu(), expected) < (2e-2 if fp8 else 4e-3)
