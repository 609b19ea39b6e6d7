"""The decoder's checkpoints: the original Wan 2.1 VAE, whose names are ours, and diffusers' AutoencoderKLWan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from rtgen.models.checkpoints.lazy import LazyTensor
from rtgen.models.checkpoints.names import Rule, rename, renamed, rules, squeezed_alike
from rtgen.models.checkpoints.source import Checkpoint

# The encoder's half is not shipped.
ORIGINAL = rules({r"encoder\..+": None, r"conv1\..+": None})

RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
"""Places in the original's Sequential of a residual block."""


def decoder_tensors(checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """Tensors of ``conv2`` and the decoder (:class:`rtgen.models.autoencoder.StreamingDecoder`).

    ``wanted``: shapes by name. Gains are stored with one, two or three trailing dimensions of size 1.
    """
    names = checkpoint.tensors.keys()
    diffusers = any(name.startswith("post_quant_conv.") for name in names)
    table = _diffusers(names) if diffusers else ORIGINAL
    found = rename(checkpoint.tensors, lambda name: renamed(name, table))
    return {
        name: squeezed_alike(tensor, wanted[name]) if name.endswith(".gamma") and name in wanted else tensor
        for name, tensor in found.items()
    }


def _diffusers(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules for AutoencoderKLWan. The original numbers residual blocks and up-samplings of all levels in one row.

    ``names``: of the whole checkpoint; they tell how many residual blocks a level has.
    """
    blocks = [match for name in names if (match := re.match(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", name))]
    residuals = 1 + max((int(match[1]) for match in blocks), default=0)

    def residual(match: re.Match[str]) -> str:
        return f"decoder.upsamples.{_place(match)}.{RESIDUAL[match[3]]}.{match[4]}"

    def shortcut(match: re.Match[str]) -> str:
        return f"decoder.upsamples.{_place(match)}.shortcut.{match[3]}"

    def upsampling(match: re.Match[str]) -> str:
        return f"decoder.upsamples.{int(match[1]) * (residuals + 1) + residuals}.{match[2]}"

    def _place(match: re.Match[str]) -> int:
        return int(match[1]) * (residuals + 1) + int(match[2])

    return rules(
        {
            r"encoder\..+|quant_conv\..+": None,
            r"post_quant_conv\.(.+)": r"conv2.\1",
            r"decoder\.conv_in\.(.+)": r"decoder.conv1.\1",
            r"decoder\.norm_out\.(.+)": r"decoder.head.0.\1",
            r"decoder\.conv_out\.(.+)": r"decoder.head.2.\1",
            r"decoder\.mid_block\.attentions\.0\.(.+)": r"decoder.middle.1.\1",
            r"decoder\.mid_block\.resnets\.([01])\.(norm1|conv1|norm2|conv2)\.(.+)": (
                lambda match: f"decoder.middle.{2 * int(match[1])}.{RESIDUAL[match[2]]}.{match[3]}"
            ),
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(norm1|conv1|norm2|conv2)\.(.+)": residual,
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.conv_shortcut\.(.+)": shortcut,
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.+)": upsampling,
        }
    )
