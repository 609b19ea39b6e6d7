"""The text encoder's published layouts."""

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from rtgen.config.model import TextEncoderConfig  # noqa: E402
from rtgen.models.text_encoder import TextEncoder  # noqa: E402
from tests.models.checkpoints.published import converted, deviation, equal, filled, shapes, source, state  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402

CONFIG = TextEncoderConfig(vocabulary=64, dim=16, heads=2, head_dim=6, ffn_dim=24, layers=3, max_tokens=20)


@pytest.fixture(scope="module")
def umt5():
    transformers = pytest.importorskip("transformers")
    reference = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=CONFIG.vocabulary, d_model=CONFIG.dim, d_kv=CONFIG.head_dim, d_ff=CONFIG.ffn_dim,
            num_layers=CONFIG.layers, num_heads=CONFIG.heads, dropout_rate=0.0, feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    random_weights(reference, 2)
    return reference


@pytest.mark.parametrize("held", ["as saved", "both names", "the tied name"])
def test_a_transformers_folder_computes_what_transformers_computes(tmp_path, umt5, held):
    folder = tmp_path / "text_encoder"
    umt5.save_pretrained(folder, max_shard_size="5KB" if held == "as saved" else "5GB")
    if held != "as saved":
        tensors = load_file(folder / "model.safetensors")
        embedding = tensors.pop("shared.weight", None)
        embedding = tensors.pop("encoder.embed_tokens.weight", None) if embedding is None else embedding
        tensors["encoder.embed_tokens.weight"] = embedding
        if held == "both names":
            tensors["shared.weight"] = embedding.clone()
        save_file(tensors, folder / "model.safetensors")
    encoder = filled(TextEncoder(CONFIG), source("text_encoder", folder), tmp_path / "out")
    ids, mask = torch.randint(2, 64, (1, 20)), torch.ones(1, 20, dtype=torch.int64)
    mask[:, 13:] = 0
    with torch.no_grad():
        expected = umt5(input_ids=ids, attention_mask=mask).last_hidden_state
        found = encoder(ids, mask)
    assert deviation(found[:, :13], expected[:, :13]) < 1e-5 and found[:, 13:].abs().max() == 0


def test_wans_own_file_has_our_names(tmp_path):
    module = TextEncoder(CONFIG)
    random_weights(module, 1)
    tensors = {name: value.bfloat16() for name, value in state(module).items()}
    file = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(tensors, file)
    found = converted(source("text_encoder", file), shapes(module), tmp_path / "stored", dtype="stored")
    assert equal(found, tensors)
    half = converted(source("text_encoder", file), shapes(module), tmp_path / "half", dtype="float16")
    assert equal(half, {name: value.half() for name, value in tensors.items()})
