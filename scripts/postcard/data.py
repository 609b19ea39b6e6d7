"""Endless training data: rendered clips kept in pools on the device and replaced little by little."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scripts.postcard.grammar import caption, random_scene
from scripts.postcard.render import render_indices, subject_paths
from scripts.postcard.tokens import encode

OMITTED = 0.06
"""Chance that a caption leaves an attribute out, so that short prompts work."""

RENDERED_AT_ONCE = 64
"""Clips of a new batch. Launches, of which a batch of any size takes about as many, decide the renderer's speed."""

Item = dict[str, Tensor]
"""One batch of named tensors with the clip as first dimension."""


class Pool:
    """A bounded number of items on the device. Each refresh adds some, or replaces the oldest; draws pick at random."""

    def __init__(self, capacity: int, make: Callable[[int], Item], batch: int, *, first: int | None = None) -> None:
        """``first``: items to begin with, all of them unless given."""
        self.make, self.batch, self.made = make, batch, 0
        self.capacity = max(1, capacity // batch) * batch
        self.items: Item = {}
        for _ in range(max(1, (first or self.capacity) // batch)):
            self.refresh()

    @property
    def held(self) -> int:
        """Items that can be drawn."""
        return min(self.made * self.batch, self.capacity)

    def refresh(self) -> None:
        """Add ``batch`` items, in place of the oldest when all places are taken."""
        at = self.made * self.batch % self.capacity
        for name, value in self.make(self.made).items():
            if name not in self.items:
                self.items[name] = value.new_empty((self.capacity, *value.shape[1:]))
            self.items[name][at : at + self.batch] = value
        self.made += 1

    def draw(self, count: int) -> Item:
        rows = torch.randint(self.held, (count,), device=next(iter(self.items.values())).device)
        return {name: value[rows] for name, value in self.items.items()}


class ClipSource:
    """Renders batch number ``index`` of a seeded, endless stream."""

    def __init__(self, batch: int, frames: int, size: tuple[int, int], seed: int, device: torch.device) -> None:
        self.batch, self.frames, self.size, self.seed, self.device = batch, frames, size, seed, device

    def scenes(self, index: int) -> tuple[Tensor, list[str], int, float]:
        """Attribute indices [batch, 7], captions, the render seed and the start time of a batch."""
        seed = self.seed * 1_000_003 + index
        rng = random.Random(seed)
        scenes = [random_scene(rng) for _ in range(self.batch)]
        captions = [caption(scene, rng, omit=OMITTED) for scene in scenes]
        return torch.tensor([scene.indices() for scene in scenes]), captions, seed, rng.uniform(0, 60)

    def render(self, indices: Tensor, seed: int, start: float) -> Tensor:
        """Pixels [batch, F, 3, H, W] uint8."""
        height, width = self.size
        return render_indices(
            indices, frames=self.frames, height=height, width=width, seed=seed, device=self.device, start_time=start
        )

    def pixels(self, index: int) -> Item:
        indices, _, seed, start = self.scenes(index)
        return {"pixels": self.render(indices, seed, start)}


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 [B, F, 3, H, W] to float32 [B, 3, F, H, W] in -1..1."""
    return pixels.permute(0, 2, 1, 3, 4).float() / 127.5 - 1


def latent_items(source: ClipSource, encode_pixels: Callable[[Tensor], Tensor], tokenizer: Tokenizer, length: int) -> (
    Callable[[int], Item]
):  # fmt: skip
    """A maker of latents [B, C, F, h, w] bfloat16, token ids and mask, and where the subject is."""

    @torch.no_grad()
    def make(index: int) -> Item:
        indices, captions, seed, start = source.scenes(index)
        pixels = source.render(indices, seed, start)
        latents = torch.cat([encode_pixels(to_signed(part)) for part in pixels.split(16)])
        ids, mask = encode(tokenizer, captions, length, source.device)
        weight = subject_weight(indices, source, seed, start, latents)
        return {"latents": latents.bfloat16(), "ids": ids, "mask": mask, "weight": weight.bfloat16()}

    return make


def subject_weight(indices: Tensor, source: ClipSource, seed: int, start: float, latents: Tensor) -> Tensor:
    """Near 1 at latent cells [B, F, h, w] that the subject covers, falling to 0 around them."""
    height, width = source.size
    x, y, size = subject_paths(indices, source.frames, height, width, seed, start)
    frames, rows, columns = latents.shape[2:]
    group = source.frames // frames
    centre_x = x[:, group // 2 :: group].to(source.device, torch.float32)[:, :, None, None] * rows
    centre_y = y[:, group // 2 :: group].to(source.device, torch.float32)[:, :, None, None] * rows
    radius = size.to(source.device, torch.float32)[..., None, None] * rows
    row = torch.arange(rows, device=source.device)[:, None] + 0.5
    column = torch.arange(columns, device=source.device) + 0.5
    square = (column - centre_x).square() + (row - centre_y).square()
    return torch.exp(-0.5 * (square / (1.1 * radius).square()).square())
