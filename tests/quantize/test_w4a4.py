"""Quantizing to W4A4: what is stored is what the operator takes, and each measure against rounding errors helps."""

import pytest

torch = pytest.importorskip("torch")

from rtgen.plugins.w4a4_linear import quantize_groups, rotate_groups, torch_op  # noqa: E402
from rtgen.quantize.formats import packed_int4  # noqa: E402
from rtgen.quantize.result import LayerResult  # noqa: E402
from rtgen.quantize.simulate import SimulatedLinear  # noqa: E402
from rtgen.quantize.w4a4 import SignedInt4, quantize_w4a4, signal_to_noise  # noqa: E402

WIDTH, OUT = 192, 96


def inputs(rows=1200, outliers=(), mean=0.0, seed=0):
    """Rows [rows, WIDTH] with large channels and a mean in each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator) + mean * torch.randn(WIDTH, generator=torch.Generator())
    for channel in outliers:
        x[:, channel] *= 30
    return x


def matrix(out=OUT, seed=1):
    return torch.randn(out, WIDTH, generator=torch.Generator().manual_seed(seed)) * WIDTH**-0.5


def quantize(weight, x, bias=None, rank=16, rotation=True):
    return quantize_w4a4([weight], [bias], x, rank=rank, rotation=rotation)[0]


def stored(layer):
    tensors = {"codes": packed_int4(layer.codes), "scales": layer.scales}
    names = ("pre_scale", "shift", "low_rank_down", "low_rank_up", "bias")
    return tensors | {name: getattr(layer, name) for name in names}


def computed(layer, x):
    """By the operator."""
    tensors = stored(layer)
    tensors["codes"] = tensors["codes"].view(torch.int8)
    order = ("codes", "scales", "pre_scale", "shift", "low_rank_down", "low_rank_up", "bias")
    return torch_op()(x.half(), *(tensors[name] for name in order), int(layer.rotated)).float()


@pytest.mark.parametrize("outliers", [(), (5, 70)])
def test_the_operator_and_the_simulation_give_the_stated_signal_to_noise(outliers):
    x, weight, bias = inputs(outliers=outliers, mean=0.5).half().float(), matrix(), torch.linspace(-2, 2, OUT)
    layer = quantize(weight, x, bias)
    judged = x[-len(x) // 4 :]
    result = LayerResult(
        name="w", weights="int4", block=64, activations="int4", group=64, rank=16, smoothed=True, rotated=layer.rotated
    )
    found, simulated = computed(layer, judged), SimulatedLinear(result, stored(layer), None)(judged)
    torch.testing.assert_close(found, simulated, rtol=2e-3, atol=1e-2)
    assert signal_to_noise(judged @ weight.T, found - bias) == pytest.approx(layer.snr_db, abs=0.05)


def plain(weight, x):
    """Rounded to nearest, without any measure."""
    codes, scales = quantize_groups(x)
    blocks = weight.reshape(len(weight), -1, 64)
    step = SignedInt4().scales(blocks.reshape(-1, 64)).reshape(len(weight), -1, 1)
    rounded = (SignedInt4().units(blocks / step) * step).reshape(weight.shape)
    return signal_to_noise(x @ weight.T, (codes * scales).reshape(x.shape) @ rounded.T)


def test_measures_against_outliers_and_means_gain_more_than_8_db():
    x, weight = inputs(outliers=(3, 64, 100), mean=1.0), matrix()
    assert quantize(weight, x).snr_db > plain(weight, x) + 8


def test_a_higher_rank_leaves_less_noise():
    x, weight = inputs(), matrix()
    found = [quantize(weight, x, rank=rank) for rank in (0, 16, 48)]
    assert found[0].low_rank_down.shape == (0, WIDTH) and found[0].low_rank_up.shape == (OUT, 0)
    assert found[0].snr_db + 1 < found[1].snr_db < found[2].snr_db - 2


def test_rotation_is_used_where_it_helps_and_allowed():
    generator = torch.Generator().manual_seed(0)
    spikes = torch.randn(1200, WIDTH, generator=generator)
    spikes *= 1 + 20 * (torch.rand(1200, WIDTH, generator=generator) < 0.01)  # anywhere: smoothing cannot catch them
    weight = matrix()
    turned, straight = (quantize(weight, spikes, rotation=rotation) for rotation in (True, False))
    assert turned.rotated and not straight.rotated and turned.snr_db > straight.snr_db + 2
    flat = rotate_groups(torch.sign(torch.randn(1200, WIDTH, generator=generator)) + 1e-3)
    assert quantize(weight, rotate_groups(flat), rank=0).rotated is False  # two values: exact as they are


def test_layers_of_one_input_share_what_is_done_to_it():
    x, weights = inputs(outliers=(9,)), [matrix(seed=seed) for seed in (1, 2, 3)]
    first, *others = quantize_w4a4(weights, [None] * 3, x, rank=8, rotation=True)
    for other in others:
        assert torch.equal(first.pre_scale, other.pre_scale) and torch.equal(first.shift, other.shift)
        assert first.rotated == other.rotated and not torch.equal(first.codes, other.codes)


def test_the_same_arguments_give_the_same_bits():
    x, weight = inputs(), matrix()
    one, other = (stored(quantize(weight, x)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_and_inputs_of_nothing_but_zeros_are_taken():
    for weight, x in ((matrix() * 0, inputs()), (matrix(), inputs() * 0)):
        layer = quantize(weight, x)
        assert computed(layer, x[:4]).isfinite().all()
    assert computed(quantize(matrix() * 0, inputs()), inputs()[:4]).abs().max() == 0


@pytest.mark.parametrize(
    ("weight", "samples", "message"),
    [
        (torch.zeros(4, 100), torch.zeros(8, 100), "no whole groups of 64"),
        (torch.zeros(4, 128), torch.zeros(8, 64), "no inputs of a matrix"),
        (torch.zeros(4, 128), torch.zeros(0, 128), "no inputs of a matrix"),
        (torch.full((4, 128), torch.nan), torch.ones(8, 128), "not finite"),
        (torch.full((4, 128), 1e9), torch.ones(8, 128), "too large for float16"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight, samples, message):
    with pytest.raises(ValueError, match=message):
        quantize(weight, samples, rank=2)


def test_scales_take_the_sign_of_the_extreme_so_that_it_gets_the_code_minus_8():
    blocks = torch.tensor([[*[0.1] * 63, 4.0], [*[0.1] * 63, -4.0]])
    scales = SignedInt4().scales(blocks)
    assert scales[0] < 0 < scales[1]
    codes = SignedInt4().units(blocks / scales[:, None])
    assert (codes[:, -1] == -8).all()
