"""Three-dimensional rotary position embedding on (time, height, width)."""

import torch
from torch import Tensor

AxisTables = tuple[Tensor, Tensor, Tensor]
"""Tables of the three axes, each [positions, complex channels, 2] float32 holding (cos, sin)."""


def axis_table(positions: Tensor, channels: int, theta: float) -> Tensor:
    """Rotation of integer ``positions`` [n] on one axis: [n, channels, 2] float32, computed in float64.

    Frequencies are theta^(-k / channels) for k in 0 .. channels - 1 (RoFormer, and Wan 2.1 on each axis).
    """
    exponent = torch.arange(channels, dtype=torch.float64, device=positions.device) / channels
    angles = positions.to(torch.float64).unsqueeze(-1) * theta**-exponent
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def token_rotation(tables: AxisTables) -> Tensor:
    """Combine the axis tables over the token grid, time-major: [frames * rows * columns, head_dim / 2, 2]."""
    time, height, width = tables
    frames, rows, columns = time.shape[0], height.shape[0], width.shape[0]
    grid = torch.cat(
        [
            time[:, None, None].expand(frames, rows, columns, -1, -1),
            height[None, :, None].expand(frames, rows, columns, -1, -1),
            width[None, None, :].expand(frames, rows, columns, -1, -1),
        ],
        dim=3,
    )
    return grid.flatten(0, 2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels of x [B, T, heads, head_dim] by ``rotation`` [T, head_dim / 2, 2]."""
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
