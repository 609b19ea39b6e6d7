"""The streaming decoder: the size of the chunks does not show, and Wan's VAE is a member."""

import pytest

torch = pytest.importorskip("torch")

from rtgen.config.model import AutoencoderConfig  # noqa: E402
from rtgen.models.autoencoder import (  # noqa: E402
    Autoencoder,
    StreamingDecoder,
    fold_pixels,
    latent_statistics,
    unfold_pixels,
)
from tests.models.random_weights import random_weights  # noqa: E402

FRAMES = 7


def config(**fields):
    return AutoencoderConfig.model_validate(
        {
            "latent_channels": 4, "base_channels": 6, "multipliers": (1, 2, 4), "residual_blocks": 1,
            "temporal_downsample": (True, True), "pixel_patch": 2, "latent_mean": (0.3, -0.1, 0.2, 0.0),
            "latent_std": (1.5, 0.7, 1.0, 1.2),
        }
        | fields
    )  # fmt: skip


def decoder(**fields):
    module = StreamingDecoder(config(**fields)).eval().requires_grad_(False)
    random_weights(module, 5)
    return module


def decode(module, latents, sizes):
    """Pixels of a stream that comes in chunks of these sizes, without the frames that do not exist."""
    parts, past = [], None
    for index, chunk in enumerate(latents.split(sizes, dim=2)):
        pixels, past = module(chunk, torch.tensor([float(index == 0)]), past)
        parts.append(pixels)
    found = torch.cat(parts, dim=2)
    auto = module.config
    return found[:, :, auto.temporal_stride - 1 :] if auto.single_first_frame else found


def close(found, expected, tolerance):
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("temporal", [(True, True), (False, True), (True, False)])
def test_chunks_of_any_size_make_the_clip_that_one_chunk_makes(single, temporal):
    module = decoder(single_first_frame=single, temporal_downsample=temporal)
    latents = torch.randn(1, 4, FRAMES, 3, 4)
    whole = decode(module, latents, [FRAMES])
    stride = module.config.temporal_stride
    frames = FRAMES * stride - (stride - 1 if single else 0)
    assert whole.shape == (1, 3, frames, 3 * 8, 4 * 8)
    for sizes in ([1] * FRAMES, [3, 3, 1], [1, 4, 2], [2, 5]):
        assert close(decode(module, latents, sizes), whole, 1e-5)


def test_a_chunk_needs_nothing_of_the_future():
    module = decoder()
    latents = torch.randn(1, 4, 4, 2, 2)
    changed = latents.clone()
    changed[:, :, 2:] += 1
    before, after = decode(module, latents, [4]), decode(module, changed, [4])
    assert torch.equal(before[:, :, :8], after[:, :, :8]) and not torch.equal(before[:, :, 8:], after[:, :, 8:])


def test_unfolding_pixels_undoes_folding():
    x = torch.randn(2, 3, 2, 8, 12)
    assert torch.equal(unfold_pixels(fold_pixels(x, 2), 2), x)
    assert torch.equal(fold_pixels(x, 4)[:, 4], x[:, 0, :, ::4, 1::4])  # columns before rows (Wan 2.2)


def test_the_encoder_answers_the_decoder():
    module = Autoencoder(config()).eval().requires_grad_(False)
    mean, log_variance = module.encode(torch.rand(1, 3, 8, 16, 24) * 2 - 1)
    assert mean.shape == log_variance.shape == (1, 4, 2, 2, 3)
    latent_mean, std = latent_statistics(module.config, mean.device)
    back = module.normalise(mean) * std + latent_mean
    torch.testing.assert_close(back, mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[5], [3, 2], [1] * 5])
def test_decoding_is_that_of_diffusers_wan_vae(sizes):
    diffusers = pytest.importorskip("diffusers")
    module = decoder(
        base_channels=8, multipliers=(1, 2, 4, 4), residual_blocks=2, temporal_downsample=(False, True, True),
        pixel_patch=1, single_first_frame=True,
    )  # fmt: skip
    module.decoder.head[2].weight.mul_(0.1)  # diffusers clamps its pixels, which would hide differences
    wan = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    weights = {}
    for name, value in module.state_dict().items():
        theirs = _diffusers_name(name, residual_blocks=2)
        weights[theirs] = value.reshape(wan.get_parameter(theirs).shape)
    missing, surplus = wan.load_state_dict(weights, strict=False)
    assert not surplus and all(name.startswith(("encoder.", "quant_conv.")) for name in missing)

    latents = torch.randn(1, 4, 5, 3, 4)
    latent_mean, std = latent_statistics(module.config, latents.device)
    with torch.no_grad():
        expected = wan.decode(latents * std + latent_mean).sample
    found = decode(module, latents, sizes)
    assert found.abs().max() < 1
    assert close(found, expected, 1e-4)


def _diffusers_name(name, *, residual_blocks):
    """The name that diffusers gives a weight of the original Wan VAE checkpoint."""
    parts = name.split(".")
    if parts[0] == "conv2":
        return name.replace("conv2", "post_quant_conv")
    match parts[1]:
        case "conv1":
            place, rest = "conv_in", parts[2:]
        case "head":
            place, rest = {"0": "norm_out", "2": "conv_out"}[parts[2]], parts[3:]
        case "middle":
            block = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[parts[2]]
            place, rest = f"mid_block.{block}", parts[3:]
        case _:
            level, index = divmod(int(parts[2]), residual_blocks + 2)
            block = f"resnets.{index}" if index <= residual_blocks else "upsamplers.0"
            place, rest = f"up_blocks.{level}.{block}", parts[3:]
    if rest[0] == "residual":
        rest = [{"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}[rest[1]], *rest[2:]]
    elif rest[0] == "shortcut":
        rest = ["conv_shortcut", *rest[1:]]
    return ".".join(("decoder", place, *rest))
