"""The text encoder's checkpoints: Wan's own file, whose names are ours, and transformers' UMT5EncoderModel."""

from __future__ import annotations

from rtgen.models.checkpoints.lazy import LazyTensor
from rtgen.models.checkpoints.names import rename, renamed, rules
from rtgen.models.checkpoints.source import Checkpoint

# Each block is a list of layers: 0 attends, 1 is the gated feed-forward (wi_0 is the branch under GELU).
TRANSFORMERS = rules(
    {
        r"shared\.weight": r"token_embedding.weight",
        r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.weight": r"blocks.\1.attn.\2.weight",
        r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight": (
            r"blocks.\1.pos_embedding.embedding.weight"
        ),
        r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight": r"blocks.\1.norm1.weight",
        r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight": r"blocks.\1.norm2.weight",
        r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.weight": r"blocks.\1.ffn.gate.0.weight",
        r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.weight": r"blocks.\1.ffn.fc1.weight",
        r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.weight": r"blocks.\1.ffn.fc2.weight",
        r"encoder\.final_layer_norm\.weight": r"norm.weight",
    }
)
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
"""Two names of one tensor in transformers; a file holds either or both."""


def text_encoder_tensors(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The encoder's tensors under Wan's names (:class:`rtgen.models.text_encoder.TextEncoder`)."""
    tensors = dict(checkpoint.tensors)
    shared, tied = (tensors.pop(name, None) for name in EMBEDDINGS)
    embedding = shared or tied
    if embedding is None:
        return tensors
    return rename({EMBEDDINGS[0]: embedding, **tensors}, lambda name: renamed(name, TRANSFORMERS))
