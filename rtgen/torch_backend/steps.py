"""What lies between the matrix products of the denoiser's blocks: what each step computes, in plain torch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.models.rope import rotate
from rtgen.torch_backend.fp8_linear import codes_of


class Steps(Protocol):
    """T tokens of ``dim`` numbers each. Inputs are float16, but for the float32 residual stream, gates, gains, factors,
    shifts and rotation; ``step`` is a float32 [] scale: the result is FP8 codes in units of it, without one float16."""

    def norm(
        self,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        factor: Tensor,
        shift: Tensor,
        step: Tensor | None,
        eps: float,
    ) -> Tensor:
        """x += branch * gate in place (either may be missing), and of that LayerNorm * factor + shift: [T, dim].

        Gate, factor and shift are [F, dim], a row a frame, or [dim].
        """

    def heads(
        self, parts: tuple[Tensor, Tensor, Tensor], gains: tuple[Tensor, Tensor], rotation: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys RMS-normed and rotated by [T, head_dim / 2, 2], and values: [T, dim] to
        [1, heads, T, head_dim]."""

    def rms(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """The RMS norm of tokens [T, dim]."""

    def merge(self, attention: Tensor, step: Tensor | None) -> Tensor:
        """The attention of all heads, [1, heads, T, head_dim] of any strides, to [T, dim]."""

    def encode(self, x: Tensor, step: Tensor) -> Tensor:
        """Codes of tokens [T, dim]."""

    def gelu(self, x: Tensor, step: Tensor | None) -> Tensor:
        """GELU by tanh."""


class PlainSteps:
    """The reference."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    def norm(
        self,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        factor: Tensor,
        shift: Tensor,
        step: Tensor | None,
        eps: float,
    ) -> Tensor:
        if branch is not None:
            added = branch.float()
            x += added if gate is None else _by_frame(added, gate)
        normed = F.layer_norm(x, x.shape[-1:], eps=eps)
        return _left(_by_frame(normed, factor) + _by_frame(torch.ones_like(x), shift), step)

    def heads(
        self, parts: tuple[Tensor, Tensor, Tensor], gains: tuple[Tensor, Tensor], rotation: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = [F.rms_norm(x.float(), x.shape[-1:], gain, eps) for x, gain in zip(parts, gains, strict=False)]
        query, key, value = (x[None].unflatten(2, (self._heads, -1)) for x in (*normed, parts[2]))
        query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = (x.to(torch.float16).transpose(1, 2).contiguous() for x in (query, key, value))
        return query, key, value

    def rms(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], gain, eps).to(torch.float16)

    def merge(self, attention: Tensor, step: Tensor | None) -> Tensor:
        return _left(attention[0].transpose(0, 1).flatten(1), step)

    def encode(self, x: Tensor, step: Tensor) -> Tensor:
        return _left(x, step)

    def gelu(self, x: Tensor, step: Tensor | None) -> Tensor:
        return _left(F.gelu(x.float(), approximate="tanh"), step)


def _by_frame(x: Tensor, rows: Tensor) -> Tensor:
    return (x.unflatten(0, (rows.shape[0] if rows.ndim == 2 else 1, -1)) * rows.unsqueeze(-2)).flatten(0, 1)


def _left(x: Tensor, step: Tensor | None) -> Tensor:
    return x.to(torch.float16) if step is None else codes_of(x.float(), step)
