"""Encoded prompts for calibration, with one block of the text encoder in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.models.registry import load
from rtgen.runtime.prompt import Tokenizer

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.models.text_encoder import TextEncoder
    from rtgen.quantize.device import Device


@torch.no_grad()
def encode_prompts(
    config: ModelConfig, weights: Path, prompts: Sequence[str], device: Device, warn: Callable[[str], None]
) -> dict[str, Tensor]:
    """The context of each prompt, [1, max_tokens, dim] float32 on the host.

    ``warn`` is told what is lost of a prompt, such as words that the model does not know. Raises PromptError,
    CheckpointError.
    """
    tokenizer = Tokenizer.from_file(weights / config.weights.tokenizer, example=config.example_prompts[0])
    limit = config.text_encoder.max_tokens
    encoded = [tokenizer.encode(prompt, limit) for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded, strict=True):
        for warning in tokens.warnings:
            warn(f"calibration prompt '{prompt[:40]}': {warning}")
    ids = torch.cat([torch.from_numpy(tokens.ids) for tokens in encoded])
    mask = torch.cat([torch.from_numpy(tokens.mask) for tokens in encoded])
    longest = int(mask.sum(dim=1).max())  # padding comes out as zeros, so it need not go in
    context = _run(config, weights, ids[:, :longest], mask[:, :longest], device)
    padded = F.pad(context, (0, 0, 0, limit - longest))
    return {prompt: padded[number : number + 1] for number, prompt in enumerate(prompts)}


def _run(config: ModelConfig, weights: Path, ids: Tensor, mask: Tensor, device: Device) -> Tensor:
    """[B, L, dim] float32 of ids and mask [B, L]."""
    model: TextEncoder = load("text_encoder", config, weights, "float16")[0]  # type: ignore[assignment]
    x, buckets, padding = (value.to(device.name) for value in model.embed(ids, mask))
    for block in model.blocks:
        x = deepcopy(block).to(device.name, device.dtype)(x, buckets, padding)
    return model.project(x.cpu(), mask)
