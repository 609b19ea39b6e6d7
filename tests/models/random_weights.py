"""Random weights under which every input of a module shows in its output."""

import torch
from torch import nn


@torch.no_grad()
def random_weights(module: nn.Module, seed: int) -> None:
    """Fill a module so that activations stay at about the size of one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            value.copy_(1 + 0.2 * noise)
        elif value.ndim == 1:
            value.copy_(0.2 * noise)
        elif "modulation" in name or ("embedding" in name and value.ndim == 2):
            value.copy_(0.5 * noise)
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
