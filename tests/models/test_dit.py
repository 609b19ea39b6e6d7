"""The denoiser: streaming through the K/V ring is one masked forward over the clip, and Wan is a member."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from rtgen.models.kv_ring import KVRing  # noqa: E402
from rtgen.runtime.kv_cache import RingLayout  # noqa: E402
from tests.models.attention import DenseAttend, rotation, small_dit, visible_chunks  # noqa: E402

CHUNK, ROWS, COLUMNS = 2, 2, 3
TOKENS = CHUNK * ROWS * COLUMNS


def stream(model, clean, noisy, timesteps, context, layout, *, dirt=0.0):
    """Velocities of the noisy and the clean pass of every chunk, as the runtime makes them."""
    config, frame = model.config, ROWS * COLUMNS
    shape = (1, config.heads, layout.window * frame, config.head_dim)
    keys, values = ([torch.full(shape, dirt) for _ in range(config.layers)] for _ in range(2))
    found = []
    for chunk in range(clean.shape[2] // CHUNK):
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        turn = rotation(config, torch.arange(part.start, part.stop), ROWS, COLUMNS)
        place = [torch.tensor([n * frame]) for n in (layout.slot(chunk), layout.length(chunk))]
        for latents, timestep in ((noisy, timesteps[:, part]), (clean, torch.zeros(1, CHUNK))):
            ring = KVRing(keys, values, *place)
            found.append(model(latents[:, :, part], timestep, context, turn, ring))
            keys, values = ring.keys, ring.values
    return torch.cat(found[0::2], dim=2), torch.cat(found[1::2], dim=2)


def dense(model, clean, noisy, timesteps, context, layout):
    """The same in one forward: clean frames see clean ones, noisy chunks see the clean ones before and themselves."""
    frames = clean.shape[2]
    chunks = frames // CHUNK
    mask = torch.zeros(2 * chunks, 2 * chunks, dtype=torch.bool)
    for chunk in range(chunks):
        seen = visible_chunks(chunk, window=layout.window // CHUNK, sink=layout.sink // CHUNK)
        mask[chunk, seen] = True
        mask[chunks + chunk, seen] = True
        mask[chunks + chunk, chunk] = False
        mask[chunks + chunk, chunks + chunk] = True
    mask = mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    turn = rotation(model.config, torch.arange(frames).repeat(2), ROWS, COLUMNS)
    steps = torch.cat([torch.zeros(1, frames), timesteps], dim=1)
    both = model(torch.cat([clean, noisy], dim=2), steps, context, turn, DenseAttend(mask))
    return both[:, :, frames:], both[:, :, :frames]


@pytest.mark.parametrize(
    ("window", "sink", "chunks"), [(6, 0, 8), (8, 4, 9), (6, 2, 7), (4, 0, 5), (2, 0, 3), (20, 0, 4)]
)
def test_streaming_equals_one_block_causal_forward(window, sink, chunks):
    model = small_dit(seed=window)
    torch.manual_seed(sink)
    frames = chunks * CHUNK
    clean, noisy = torch.randn(2, 1, 4, frames, 2 * ROWS, 2 * COLUMNS)
    context, timesteps = torch.randn(1, 5, 16), torch.rand(1, chunks).mul(1000).repeat_interleave(CHUNK, 1)
    arguments = (model, clean, noisy, timesteps, context, RingLayout(window, sink, CHUNK))
    streamed, masked = stream(*arguments, dirt=1e4), dense(*arguments)
    for ours, reference in zip(streamed, masked, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5 * float(reference.abs().max()), rtol=0)


def test_every_input_shows_in_the_velocity():
    model = small_dit()
    latents, context = torch.randn(1, 4, CHUNK, 2 * ROWS, 2 * COLUMNS), torch.randn(1, 5, 16)
    turn, plain = (
        rotation(model.config, torch.arange(CHUNK), ROWS, COLUMNS),
        DenseAttend(torch.ones(TOKENS, TOKENS) > 0),
    )

    def velocity(latents=latents, step=500.0, context=context, turn=turn):
        return model(latents, torch.full((1, CHUNK), step), context, turn, plain)

    base = velocity()
    later = rotation(model.config, 3 * torch.arange(CHUNK), ROWS, COLUMNS)
    for other in (velocity(latents + 0.1), velocity(step=510.0), velocity(context=context * 1.1), velocity(turn=later)):
        assert (other - base).abs().max() > 1e-3


def test_a_single_forward_is_that_of_diffusers_wan():
    diffusers = pytest.importorskip("diffusers")
    model = small_dit(seed=3)
    config = model.config
    wan = diffusers.WanTransformer3DModel(
        num_attention_heads=config.heads, attention_head_dim=config.head_dim, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=config.frequency_dim, ffn_dim=config.ffn_dim, num_layers=config.layers, eps=config.eps,
        rope_max_seq_len=64,
    ).eval()  # fmt: skip
    wan.load_state_dict({_diffusers_name(name): value for name, value in model.state_dict().items()})
    torch.manual_seed(1)
    latents, context = torch.randn(2, 4, 3, 6, 8), torch.randn(2, 7, 16)

    def attend(layer, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)

    for step in (1000.0, 317.0, 0.0):
        with torch.no_grad():
            expected = wan(latents, torch.full((2,), step), context, return_dict=False)[0]
            found = model(latents, torch.full((2, 3), step), context, rotation(config, torch.arange(3), 3, 4), attend)
        assert (found - expected).norm() / expected.norm() < 1e-4


def _diffusers_name(name):
    """The name that diffusers gives a weight of the original Wan checkpoint."""
    renamed = {
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "head.modulation": "scale_shift_table", "head.head": "proj_out", "modulation": "scale_shift_table",
        "self_attn": "attn1", "cross_attn": "attn2", "norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
        ".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".o.": ".to_out.0.",
    }  # fmt: skip
    for ours, theirs in renamed.items():
        name = name.replace(ours, theirs)
    return name
