"""What the classifier sees in clips, and how much of it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.postcard.classifier import GAP, Classifier, accuracies, pair_starts, sample_pairs
from scripts.postcard.grammar import ATTRIBUTES, Scene

READ_AT_ONCE = 64
"""Clips that one run of the classifier takes; bounds the memory."""


@dataclass(frozen=True)
class Reading:
    """Of some clips, on the processor."""

    answers: Tensor
    """Class indices int64 [B, 7]."""
    features: Tensor
    """The classifier's vectors before its heads, float32 [B, D]."""


@torch.no_grad()
def read_clips(classifier: Classifier, video: Tensor) -> Reading:
    """Let the classifier look at clips uint8 [B, 80, 3, H, W]."""
    answers, features = [], []
    for part in video.split(READ_AT_ONCE):
        part = part.to(next(classifier.parameters()).device)
        answers.append(classifier.read(part).cpu())
        features.append(classifier.features(sample_pairs(part, pair_starts(), GAP)).float().cpu())
    return Reading(torch.cat(answers), torch.cat(features))


def join_readings(parts: Sequence[Reading]) -> Reading:
    """Those of one batch after the other."""
    return Reading(torch.cat([part.answers for part in parts]), torch.cat([part.features for part in parts]))


def accuracy(answers: Tensor, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Shares of right answers [B, 7]: of each attribute, their mean, and of clips with all seven right."""
    right = answers.cpu() == torch.tensor([scene.indices() for scene in scenes])
    return {
        "attributes": accuracies(answers, scenes),
        "mean": float(right.double().mean()),
        "all_seven": float(right.all(1).double().mean()),
    }


def misread(answers: Tensor, scenes: Sequence[Scene]) -> list[dict[str, str]]:
    """For each clip the attributes that are not as asked for, with what was read instead."""
    found = []
    for row, scene in zip(answers.tolist(), scenes, strict=True):
        read = Scene.from_indices(tuple(row))
        found.append({name: getattr(read, name) for name in ATTRIBUTES if getattr(read, name) != getattr(scene, name)})
    return found
