"""Muon with the matrices of one shape stacked, so that a step takes tens of launches instead of thousands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, as in torch.optim.Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon)."""
ITERATIONS = 5


class StackedMuon(torch.optim.Optimizer):
    """What torch.optim.Muon computes with Nesterov momentum and ``adjust_lr_fn="match_rms_adamw"``.

    The step has AdamW's root mean square (Moonlight, arXiv 2502.16982), so that one rate serves both. Parameters are
    matrices; all of them have gradients.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        stacks: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            stacks.setdefault(matrix.shape, []).append(matrix)
        defaults = {"lr": rate, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([{"params": stack} for stack in stacks.values()], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stack = group["params"]
            gradients = _gradients(stack)
            state = self.state[stack[0]]
            average = state.setdefault("momentum", [torch.zeros_like(gradient) for gradient in gradients])
            torch._foreach_lerp_(average, gradients, 1 - group["momentum"])
            torch._foreach_lerp_(gradients, average, group["momentum"])
            steps = orthogonalized(torch.stack(gradients)).to(stack[0].dtype)
            torch._foreach_mul_(stack, 1 - group["lr"] * group["weight_decay"])
            scale = 0.2 * math.sqrt(max(stack[0].shape))
            torch._foreach_add_(stack, list(steps.unbind()), alpha=-group["lr"] * scale)


def _gradients(stack: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copies of the gradients."""
    found = [matrix.grad.clone() for matrix in stack if matrix.grad is not None]
    if len(found) < len(stack):
        raise ValueError("a matrix has no gradient")
    return found


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices [N, A, B] in bfloat16, about: singular values end between 0.7 and 1.2."""
    first, second, third = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if tall else x
