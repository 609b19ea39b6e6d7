"""The text encoder: padding is invisible, and UMT5 is what it computes."""

import pytest

torch = pytest.importorskip("torch")

from rtgen.config.model import TextEncoderConfig  # noqa: E402
from rtgen.models.text_encoder import TextEncoder, relative_buckets  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402

TOKENS = 40
CONFIG = TextEncoderConfig(
    vocabulary=64, dim=16, heads=2, head_dim=6, ffn_dim=24, layers=3, max_tokens=TOKENS, max_distance=32
)


@pytest.fixture(scope="module")
def encoder():
    module = TextEncoder(CONFIG).eval().requires_grad_(False)
    random_weights(module, 0)
    return module


def prompt(words, *, padding=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((1, TOKENS), padding)
    ids[0, :words] = torch.randint(2, 64, (words,), generator=generator)
    mask = torch.zeros(1, TOKENS, dtype=torch.int64)
    mask[0, :words] = 1
    return ids, mask


def test_padding_comes_out_as_zeros_and_changes_no_word(encoder):
    context = encoder(*prompt(9))
    assert context.shape == (1, TOKENS, CONFIG.dim) and context.dtype == torch.float32
    assert context[:, 9:].abs().max() == 0 and context[:, :9].abs().min(-1).values.max() > 0
    assert torch.equal(context, encoder(*prompt(9, padding=17)))
    half = TextEncoder(CONFIG).half().eval().requires_grad_(False)
    random_weights(half, 0)
    half_context = half(*prompt(9))
    assert half_context.dtype == torch.float32 and torch.equal(half_context, half(*prompt(9, padding=17)))


def test_every_word_changes_every_other(encoder):
    ids, mask = prompt(9)
    context = encoder(ids, mask)
    ids[0, 8] += 1
    assert (encoder(ids, mask) - context)[0, :9].abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize(("length", "buckets", "distance"), [(512, 32, 128), (48, 32, 128), (64, 8, 16)])
def test_relative_buckets_are_those_of_t5(length, buckets, distance):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    away = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    expected = t5.T5Attention._relative_position_bucket(
        away, bidirectional=True, num_buckets=buckets, max_distance=distance
    )
    assert torch.equal(relative_buckets(length, buckets, distance), expected)


def test_the_context_is_that_of_umt5(encoder):
    transformers = pytest.importorskip("transformers")
    reference = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=CONFIG.vocabulary, d_model=CONFIG.dim, d_kv=CONFIG.head_dim, d_ff=CONFIG.ffn_dim,
            num_layers=CONFIG.layers, num_heads=CONFIG.heads, dropout_rate=0.0,
            relative_attention_num_buckets=CONFIG.position_buckets, feed_forward_proj="gated-gelu",
            relative_attention_max_distance=CONFIG.max_distance,
        )
    ).eval()  # fmt: skip
    weights = {_transformers_name(name): value for name, value in encoder.state_dict().items()}
    missing, surplus = reference.load_state_dict(weights, strict=False)
    assert not surplus and all("embed_tokens" in name for name in missing)  # the tied copy of the embedding
    ids, mask = prompt(21)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask)[:, :21], expected[:, :21], atol=1e-4, rtol=1e-4)


def _transformers_name(name):
    """The name that transformers gives a weight of the Wan checkpoint's text encoder."""
    renamed = {
        "token_embedding": "shared", "blocks.": "encoder.block.", ".norm1.": ".layer.0.layer_norm.",
        ".norm2.": ".layer.1.layer_norm.", ".attn.": ".layer.0.SelfAttention.",
        ".pos_embedding.embedding.": ".layer.0.SelfAttention.relative_attention_bias.",
        ".ffn.gate.0.": ".layer.1.DenseReluDense.wi_0.", ".ffn.fc1.": ".layer.1.DenseReluDense.wi_1.",
        ".ffn.fc2.": ".layer.1.DenseReluDense.wo.",
    }  # fmt: skip
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    for ours, theirs in renamed.items():
        name = name.replace(ours, theirs)
    return name
