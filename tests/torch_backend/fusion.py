"""A small denoiser for tests of its fused form."""

import torch
from torch import nn
from torch.nn import functional as F

from rtgen.config.model import DenoiserConfig
from rtgen.models.dit import CausalVideoDiT
from rtgen.models.rope import axis_table, token_rotation
from rtgen.quantize.formats import rounded, rounding_of
from rtgen.torch_backend.fp8_linear import Fp8Linear

CONFIG = DenoiserConfig(dim=128, layers=2, heads=4, ffn_dim=256, frequency_dim=32)
FRAMES, ROWS, COLUMNS = 3, 4, 5
HIGHEST = 6.0
"""Of what FP8 layers are calibrated for."""


def half_model():
    """Random weights, float16; modulations and biases are none of them zero."""
    torch.manual_seed(0)
    model = CausalVideoDiT(CONFIG, channels=4, text_dim=48)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.half().eval().requires_grad_(False)


def as_fp8(linear):
    rounding = rounding_of("fp8", None, linear.weight.float())
    parts = rounding.stored(*rounded(linear.weight.float(), rounding))
    return Fp8Linear(parts | {"input_scale": torch.tensor(HIGHEST / 448)}, linear.bias, torch.float16)


def with_fp8(model, leave=()):
    """The linear layers of the blocks in FP8, but for those whose names end so."""
    for block in model.blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear) and not name.endswith(tuple(leave) or ("none",)):
                parent, _, attribute = name.rpartition(".")
                setattr(block.get_submodule(parent), attribute, as_fp8(module))
    return model


def inputs(device="cpu"):
    """Latents, timestep, context and rotation of a pass."""
    torch.manual_seed(1)
    latents = torch.randn(1, 4, FRAMES, 2 * ROWS, 2 * COLUMNS)
    timestep, context = torch.tensor([[900.0, 500.0, 100.0]]), torch.randn(1, 7, 48)
    split = CONFIG.rope_split
    axes = (torch.arange(count) for count in (FRAMES, ROWS, COLUMNS))
    tables = tuple(axis_table(axis, width, 10000.0) for axis, width in zip(axes, split, strict=True))
    return tuple(tensor.to(device) for tensor in (latents, timestep, context, token_rotation(tables)))


def attend(layer, query, key, value):
    return F.scaled_dot_product_attention(query, key, value) * (1 + layer)


def relative(actual, expected):
    return float((actual.float() - expected.float()).norm() / expected.float().norm())
