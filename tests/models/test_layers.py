"""Norms, embeddings and patches against their formulas."""

import math

import pytest

torch = pytest.importorskip("torch")

from rtgen.models.layers import ChannelRMSNorm, RMSNorm, sinusoid  # noqa: E402
from tests.models.attention import small_dit  # noqa: E402


def test_rms_norm_divides_by_the_root_mean_square_and_keeps_the_type():
    norm = RMSNorm(6, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 6) * 0.05
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-5)
    assert norm.half()(x.half()).dtype == torch.float16
    # float16 alone would overflow: 300 squared is more than 65504
    torch.testing.assert_close(norm(x.half() * 0 + 300.0).float(), norm.weight.expand_as(x).float(), atol=2e-3, rtol=0)


def test_channel_rms_norm_scales_the_unit_vector_of_each_place():
    norm = ChannelRMSNorm(5)
    torch.nn.init.normal_(norm.gamma)
    x = torch.randn(2, 5, 3, 2, 4)
    expected = torch.nn.functional.normalize(x, dim=1) * math.sqrt(5) * norm.gamma
    torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-5)
    for dtype in (torch.float32, torch.float16):  # frames that do not exist stay empty
        assert norm.to(dtype)(torch.zeros(1, 5, 1, 1, 1, dtype=dtype)).abs().max() == 0


def test_the_time_embedding_is_cosines_then_sines_of_falling_frequencies():
    steps = torch.tensor([[0.0, 250.0, 1000.0]])
    embedded = sinusoid(steps, 8)
    assert embedded.shape == (1, 3, 8)
    for index, step in enumerate(steps[0].tolist()):
        angles = [step * 10000 ** (-k / 4) for k in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(embedded[0, index], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 2)])
def test_patches_are_embedded_as_the_convolution_does(patch):
    model = small_dit(patch=patch)
    latents = torch.randn(2, 4, 3, 4 * patch[1], 3 * patch[2])
    expected = model.patch_embedding(latents).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.embed_patches(latents), expected, atol=1e-5, rtol=1e-5)


def test_restoring_undoes_cutting_into_patches():
    model = small_dit()
    frames, rows, columns = 2, 3, 5
    latents = torch.randn(1, 4, frames, 2 * rows, 2 * columns)
    # the embedding's patches hold channels first, the head's hold them last (Wan)
    patches = torch.nn.functional.unfold(latents[0].transpose(0, 1), 2, stride=2)
    tokens = patches.unflatten(1, (4, 4)).permute(0, 3, 2, 1).reshape(1, frames * rows * columns, 16)
    assert torch.equal(model.restore_patches(tokens, frames, rows, columns), latents)
