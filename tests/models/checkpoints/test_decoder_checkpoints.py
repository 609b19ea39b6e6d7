"""The VAE's published layouts lead to a streaming decoder that decodes what diffusers decodes."""

import pytest

torch = pytest.importorskip("torch")

from rtgen.config.model import AutoencoderConfig  # noqa: E402
from rtgen.models.autoencoder import StreamingDecoder  # noqa: E402
from tests.models.checkpoints.published import deviation, filled, source, state  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402

MEAN, STD = [0.3, -0.1, 0.2, 0.0], [1.5, 0.7, 1.0, 1.2]
CONFIG = AutoencoderConfig(
    latent_channels=4, base_channels=8, multipliers=(1, 2, 4, 4), residual_blocks=2,
    temporal_downsample=(False, True, True), single_first_frame=True, latent_mean=MEAN, latent_std=STD,
)  # fmt: skip


def vae():
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True],
        latents_mean=MEAN, latents_std=STD,
    ).eval()  # fmt: skip
    random_weights(reference, 7)
    reference.decoder.conv_out.weight.data.mul_(0.1)  # diffusers clamps its pixels, which would hide differences
    return reference


def decoded(module, latents, sizes):
    """Pixels of a stream in chunks, without the frames that do not exist."""
    parts, past = [], None
    for index, chunk in enumerate(latents.split(sizes, dim=2)):
        pixels, past = module(chunk, torch.tensor([float(index == 0)]), past)
        parts.append(pixels)
    return torch.cat(parts, dim=2)[:, :, CONFIG.temporal_stride - 1 :]


def assert_decodes_alike(module, reference):
    latents = torch.randn(1, 4, 5, 3, 4)
    std, mean = (torch.tensor(values).reshape(1, 4, 1, 1, 1) for values in (STD, MEAN))
    with torch.no_grad():
        expected = reference.decode(latents * std + mean).sample
    assert expected.abs().max() < 1
    for sizes in ([5], [3, 2], [1] * 5):
        assert deviation(decoded(module, latents, sizes), expected) < 1e-5


def test_a_diffusers_folder_decodes_what_diffusers_decodes(tmp_path):
    reference = vae()
    reference.save_pretrained(tmp_path / "vae")
    module = filled(StreamingDecoder(CONFIG), source("decoder", tmp_path / "vae"), tmp_path / "out")
    assert_decodes_alike(module, reference)


def test_the_original_file_decodes_what_diffusers_makes_of_it(tmp_path):
    """The encoder's half is in the file, and left out; gains come in the original's shapes."""
    loaders = pytest.importorskip("diffusers.loaders.single_file_utils")
    source_module = StreamingDecoder(CONFIG)
    random_weights(source_module, 3)
    source_module.decoder.head[2].weight.data.mul_(0.1)
    original = state(source_module)
    original["decoder.middle.1.norm.gamma"] = original["decoder.middle.1.norm.gamma"].reshape(-1, 1, 1)
    original |= {"encoder.conv1.weight": torch.randn(8, 3, 3, 3, 3), "conv1.bias": torch.randn(8)}
    torch.save(original, tmp_path / "Wan2.1_VAE.pth")
    reference = vae()
    theirs = loaders.convert_wan_vae_to_diffusers(original)
    missing, surplus = reference.load_state_dict(
        {name: value for name, value in theirs.items() if not name.startswith(("encoder", "quant_conv"))}, strict=False
    )
    assert not surplus and all(name.startswith(("encoder", "quant_conv")) for name in missing)
    module = filled(StreamingDecoder(CONFIG), source("decoder", tmp_path / "Wan2.1_VAE.pth"), tmp_path / "out")
    assert_decodes_alike(module, reference)
