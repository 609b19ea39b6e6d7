"""The denoiser's published layouts lead to a module that computes what the public implementation computes."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rtgen.errors import CheckpointError  # noqa: E402
from rtgen.models.checkpoints.convert import CheckpointMismatch, check_source  # noqa: E402
from tests.models.attention import rotation, small_dit  # noqa: E402
from tests.models.checkpoints.published import converted, deviation, equal, filled, shapes, source, state  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402


def wan(config):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.WanTransformer3DModel(
        num_attention_heads=config.heads, attention_head_dim=config.head_dim, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=config.frequency_dim, ffn_dim=config.ffn_dim, num_layers=config.layers, eps=config.eps,
        rope_max_seq_len=64,
    ).eval()  # fmt: skip


def velocities(ours, theirs):
    """What both make of one full forward."""
    latents, context = torch.randn(2, 4, 3, 6, 8), torch.randn(2, 7, 16)
    turn = rotation(ours.config, torch.arange(3), 3, 4)

    def attend(layer, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)

    with torch.no_grad():
        expected = theirs(latents, torch.full((2,), 625.0), context, return_dict=False)[0]
        return ours(latents, torch.full((2, 3), 625.0), context, turn, attend), expected


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_a_diffusers_folder_computes_what_diffusers_computes(tmp_path, shard):
    model = small_dit()
    reference = wan(model.config)
    random_weights(reference, 11)
    reference.save_pretrained(tmp_path / "transformer", max_shard_size=shard)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) == (1 if shard == "5GB" else 8)
    found, expected = velocities(
        filled(model, source("denoiser", tmp_path / "transformer"), tmp_path / "out"), reference
    )
    assert deviation(found, expected) < 1e-5


def test_original_wan_files_compute_what_diffusers_makes_of_them(tmp_path):
    loaders = pytest.importorskip("diffusers.loaders.single_file_utils")
    original = state(small_dit(seed=4))
    save_file(original, tmp_path / "diffusion_pytorch_model.safetensors")
    model = small_dit(seed=5)
    reference = wan(model.config)
    reference.load_state_dict(loaders.convert_wan_transformer_to_diffusers(dict(original)))
    found, expected = velocities(
        filled(model, source("denoiser", tmp_path / "diffusion_pytorch_model.safetensors"), tmp_path / "out"), reference
    )
    assert deviation(found, expected) < 1e-5


def test_self_forcing_gives_the_averaged_weights_unless_told_otherwise(tmp_path):
    plain, averaged = state(small_dit(seed=1)), state(small_dit(seed=2))
    file = tmp_path / "self_forcing_dmd.pt"
    wrapped = {name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value for name, value in averaged.items()}
    content = {
        "generator": {f"model.{name}": value for name, value in plain.items()},
        "generator_ema": {f"model._orig_mod.{name}": value for name, value in wrapped.items()},
        "step": 3000,
    }
    content["generator_ema"]["model.freqs"] = torch.randn(8, 3, dtype=torch.complex128)
    torch.save(content, file)
    wanted = shapes(small_dit())
    assert equal(converted(source("denoiser", file), wanted, tmp_path / "ema"), averaged)
    assert equal(converted(source("denoiser", file, sections=("generator",)), wanted, tmp_path / "raw"), plain)
    with pytest.raises(CheckpointError, match=r"self_forcing_dmd\.pt has none of critic; it holds generator"):
        check_source(source("denoiser", file, sections=("critic",)), wanted)


def longlive(folder, base, *, rank=4, alpha=None, default=""):
    """LongLive's two files, and the weights they amount to."""
    torch.save({"generator": {f"model.{name}": value for name, value in base.items()}}, folder / "longlive_base.pt")
    parts, merged = {}, dict(base)
    for name, weight in base.items():
        if not name.startswith("blocks.") or not name.endswith(".weight") or weight.ndim != 2:
            continue
        down, up = torch.randn(rank, weight.shape[1]).bfloat16(), torch.randn(weight.shape[0], rank).bfloat16()
        module = f"base_model.model.{name.removesuffix('.weight')}"
        parts |= {f"{module}.lora_A{default}.weight": down, f"{module}.lora_B{default}.weight": up}
        merged[name] = (weight.double() + (alpha or 256) / rank * (up.double() @ down.double())).float()
    extra = {} if alpha is None else {"lora_alpha": alpha}
    torch.save({"generator_lora": parts, "step": 1, **extra}, folder / "lora.pt")
    return merged


@pytest.mark.parametrize(("alpha", "default"), [(None, ""), (8, ".default")])
def test_longlive_is_the_base_with_its_adapter_merged(tmp_path, alpha, default, monkeypatch):
    monkeypatch.setattr("rtgen.models.checkpoints.writer.PIECE", 1000)  # several pieces a matrix
    base = state(small_dit(seed=3))
    expected = longlive(tmp_path, base, alpha=alpha, default=default)
    found = source("denoiser", tmp_path / "longlive_base.pt", tmp_path / "lora.pt", adapter_alpha=256.0)
    tensors = converted(found, shapes(small_dit()), tmp_path / "out")
    assert tensors.keys() == expected.keys()
    changed = [name for name in expected if not torch.equal(tensors[name], base[name])]
    assert len(changed) == 3 * 10  # q, k, v, o twice and two of the feed-forward, in each block
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-5, atol=1e-4)


BLOCK = "base_model.model.blocks.0.ffn.0"
UNFIT = {
    "only one half for blocks.0.ffn.0.weight": lambda parts: parts.pop(f"{BLOCK}.lora_A.weight"),
    "surplus 'base_model": lambda parts: parts.update({f"{BLOCK}.lora_magnitude_vector": torch.ones(2)}),
    "nothing to adapt at 'x.weight'": lambda parts: parts.update(
        {"x.lora_A.weight": torch.ones(4, 2), "x.lora_B.weight": torch.ones(2, 4)}
    ),
    "for blocks.0.ffn.0.weight of": lambda parts: parts.update({f"{BLOCK}.lora_A.weight": torch.ones(4, 7)}),
    "it has no lora_A": lambda parts: parts.clear(),
}


@pytest.mark.parametrize("message", UNFIT)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, message):
    longlive(tmp_path, state(small_dit()))
    content = torch.load(tmp_path / "lora.pt", weights_only=True)
    UNFIT[message](content["generator_lora"])
    torch.save(content, tmp_path / "lora.pt")
    found = source("denoiser", tmp_path / "longlive_base.pt", tmp_path / "lora.pt", adapter_alpha=256.0)
    with pytest.raises(CheckpointError, match=rf"lora\.pt .*{message}"):
        check_source(found, shapes(small_dit()))
    longlive(tmp_path, state(small_dit()))
    silent = replace(found, candidate=replace(found.candidate, adapter_alpha=None))
    with pytest.raises(CheckpointError, match="alpha"):
        check_source(silent, shapes(small_dit()))


def test_every_difference_is_listed_before_anything_is_written(tmp_path):
    tensors = state(small_dit())
    wanted = shapes(small_dit())
    missing = [name for name in wanted if name.startswith("blocks.2.")]
    for name in missing:
        del tensors[name]
    tensors["img_emb.proj.0.weight"] = torch.ones(3)
    tensors["patch_embedding.weight"] = torch.ones(48, 36, 1, 2, 2)
    tensors["head.head.bias"] = tensors["head.head.bias"].long()
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointMismatch) as caught:
        converted(source("denoiser", tmp_path / "model.pt"), wanted, tmp_path / "out")
    assert set(caught.value.problems) == {
        *(f"missing {name}" for name in missing),
        "surplus 'img_emb.proj.0.weight'",
        "patch_embedding.weight is [48, 36, 1, 2, 2] instead of [48, 4, 1, 2, 2]",
        "head.head.bias is of type int64",
    }
    assert str(caught.value).startswith("model.pt does not fit the denoiser: missing blocks.2.")
    assert f"and {len(missing) - 1} more" in str(caught.value)
    assert not (tmp_path / "out").exists()
