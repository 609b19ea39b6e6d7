"""The denoiser's checkpoints: original Wan 2.1, Self-Forcing's, diffusers', all to the original's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.lazy import LazyTensor
from rtgen.models.checkpoints.names import rename, renamed, rules, without_wrappers
from rtgen.models.checkpoints.source import Checkpoint

PREFIXES = ("model.", "diffusion_model.", "base_model.", "transformer.", "generator.", "module.")
"""Of what held the transformer: Self-Forcing's generator, peft, pipelines, single-file repackagings."""
ROPE_TABLE = "freqs"
"""Some exports keep the table of rotations; it is computed here."""

SECTIONS = ("generator_ema", "generator", "model")
"""Where the transformer is in a training checkpoint, the best first: Self-Forcing is run with averaged weights."""

# diffusers.WanTransformer3DModel. It numbers norms by their order in a block, and so swaps norm2 and norm3; only the
# affine one, before cross-attention, has tensors.
DIFFUSERS = rules(
    {
        r"condition_embedder\.time_embedder\.linear_1\.(weight|bias)": r"time_embedding.0.\1",
        r"condition_embedder\.time_embedder\.linear_2\.(weight|bias)": r"time_embedding.2.\1",
        r"condition_embedder\.time_proj\.(weight|bias)": r"time_projection.1.\1",
        r"condition_embedder\.text_embedder\.linear_1\.(weight|bias)": r"text_embedding.0.\1",
        r"condition_embedder\.text_embedder\.linear_2\.(weight|bias)": r"text_embedding.2.\1",
        r"blocks\.(\d+)\.scale_shift_table": r"blocks.\1.modulation",
        r"blocks\.(\d+)\.attn1\.to_([qkv])\.(weight|bias)": r"blocks.\1.self_attn.\2.\3",
        r"blocks\.(\d+)\.attn2\.to_([qkv])\.(weight|bias)": r"blocks.\1.cross_attn.\2.\3",
        r"blocks\.(\d+)\.attn1\.to_out\.0\.(weight|bias)": r"blocks.\1.self_attn.o.\2",
        r"blocks\.(\d+)\.attn2\.to_out\.0\.(weight|bias)": r"blocks.\1.cross_attn.o.\2",
        r"blocks\.(\d+)\.attn1\.norm_([qk])\.weight": r"blocks.\1.self_attn.norm_\2.weight",
        r"blocks\.(\d+)\.attn2\.norm_([qk])\.weight": r"blocks.\1.cross_attn.norm_\2.weight",
        r"blocks\.(\d+)\.norm2\.(weight|bias)": r"blocks.\1.norm3.\2",
        r"blocks\.(\d+)\.ffn\.net\.0\.proj\.(weight|bias)": r"blocks.\1.ffn.0.\2",
        r"blocks\.(\d+)\.ffn\.net\.2\.(weight|bias)": r"blocks.\1.ffn.2.\2",
        r"scale_shift_table": r"head.modulation",
        r"proj_out\.(weight|bias)": r"head.head.\1",
    }
)


def denoiser_tensors(checkpoint: Checkpoint, sections: Sequence[str] = SECTIONS) -> dict[str, LazyTensor]:
    """The transformer's tensors under the names of the original Wan checkpoint (:class:`rtgen.models.dit`).

    ``sections``: which part of a training checkpoint to take, in order of preference.
    Raises CheckpointError when it has none of them, or when two tensors come out under one name.
    """
    plain = rename(_chosen(checkpoint, sections), original_name)
    plain.pop(ROPE_TABLE, None)
    if any(name.startswith("condition_embedder.") for name in plain):
        return rename(plain, from_diffusers)
    return plain


def original_name(name: str) -> str:
    """A tensor's name without the wrappers in it and the prefixes of whatever held the transformer."""
    name = without_wrappers(name)
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def from_diffusers(name: str) -> str | None:
    """The original's name of a tensor of diffusers' WanTransformer3DModel; unknown names stay."""
    return renamed(name, DIFFUSERS)


def _chosen(checkpoint: Checkpoint, sections: Sequence[str]) -> Mapping[str, LazyTensor]:
    if checkpoint.tensors:
        return checkpoint.tensors
    for section in sections:
        if section in checkpoint.sections:
            return checkpoint.sections[section]
    found = ", ".join(sorted(checkpoint.sections)[:6]) or "nothing"
    raise CheckpointError(f"{checkpoint.path.name} has none of {', '.join(sections)}; it holds {found}")
