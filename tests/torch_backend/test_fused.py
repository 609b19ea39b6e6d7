"""The fused denoiser computes what the model's modules do, whichever layers are quantized."""

import pytest

torch = pytest.importorskip("torch")

from rtgen.torch_backend.fused import FusedDenoiser, Product  # noqa: E402
from rtgen.torch_backend.steps import PlainSteps  # noqa: E402
from tests.torch_backend.fusion import CONFIG, attend, half_model, inputs, relative, with_fp8  # noqa: E402

MODELS = {
    "float16": (half_model, 4e-3),
    "fp8": (lambda: with_fp8(half_model()), 2e-2),
    "some in fp8": (lambda: with_fp8(half_model(), leave=("self_attn.v", "ffn.0", "cross_attn.o")), 2e-2),
}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_it_computes_what_the_modules_do(name):
    make, limit = MODELS[name]
    model = make()
    *given, rotation = inputs()
    expected = model(*given, rotation, attend)
    fused = FusedDenoiser(model, PlainSteps(CONFIG.heads))
    fused.prepare(given[2])
    assert relative(fused(*given, rotation, attend), expected) < limit
    assert relative(model(*given, rotation, attend), expected) == 0  # and the modules are as they were
    fused.prepare(other := given[2].flip(1) * 3)
    changed = model(given[0], given[1], other, rotation, attend)
    assert relative(fused(*given, rotation, attend), changed) < limit < 2 * relative(changed, expected)


def test_layers_that_share_an_input_share_the_widest_range():
    model = with_fp8(half_model())
    attention = model.blocks[0].self_attn
    attention.k.input_scale *= 2
    product = Product(PlainSteps(CONFIG.heads), attention.q, attention.k, attention.v)
    assert torch.equal(product.step, attention.k.input_scale)
    assert Product(PlainSteps(CONFIG.heads), attention.q, torch.nn.Linear(128, 128)).step is None
