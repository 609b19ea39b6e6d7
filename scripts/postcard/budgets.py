"""Adaptive steps in batches: the runtime's rule, asked for every stream by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rtgen.runtime.adaptive import AdaptiveSteps
from scripts.postcard.rollout import Sampling


class WithinBudget:
    """A :class:`scripts.postcard.rollout.Plan` that leaves passes out as `rtgen run` does with the same error budget.

    Unlike other plans it waits for the device after each pass, to hand the changes to the rule.
    """

    def __init__(self, batch: int, sampling: Sampling, budget: float) -> None:
        self.rules = [AdaptiveSteps(sampling.sigmas, sampling.sampler, budget) for _ in range(batch)]
        self.finished = len(sampling.sigmas)
        self.before: Tensor | None = None

    def first(self) -> Tensor:
        self.before = None
        return torch.zeros(len(self.rules), dtype=torch.int64)

    def following(self, level: Tensor, clean: Tensor) -> Tensor:
        changes = [None] * len(clean) if self.before is None else root_mean_square(clean - self.before)
        self.before = clean
        return torch.tensor(
            [
                rule.after(at, change) if at < self.finished else at
                for rule, at, change in zip(self.rules, level.tolist(), changes, strict=True)
            ],
            device=level.device,
        )

    def forget(self) -> None:
        for rule in self.rules:
            rule.forget()


def root_mean_square(x: Tensor) -> list[float]:
    """Of each stream's latents [B, C, F, h, w]."""
    found: list[float] = x.square().mean((1, 2, 3, 4)).sqrt().tolist()
    return found


def peak_signal_to_noise(video: Tensor, reference: Tensor) -> float | None:
    """PSNR in dB of uint8 videos of one shape, all clips together; None where they are the same."""
    errors = [
        (one.float() - other.float()).square().mean().double()  # a clip at a time: there are gigabytes of them
        for one, other in zip(video, reference, strict=True)
    ]
    error = torch.stack(errors).mean()
    return float(10 * torch.log10(255**2 / error)) if error > 0 else None
