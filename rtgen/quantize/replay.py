"""Recorded passes taken through the denoiser again, one block after the other.

The tokens that a block is given, for all recorded passes, are all there is in memory besides the block. Self-attention
needs the keys and values of past chunks: they are those that the block itself computes in the clean passes, which are
therefore taken along for every chunk, and forgotten when the block is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.models.rope import token_rotation
from rtgen.runtime.kv_cache import RingLayout
from rtgen.runtime.rope import axis_table

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.models.dit import Block, CausalVideoDiT
    from rtgen.quantize.calibration_set import CalibrationSet, Stream
    from rtgen.quantize.device import Device

KeysValues = tuple[Tensor, Tensor]


class PastAttention:
    """An :class:`rtgen.models.dit.Attend` over the keys and values of past chunks, [1, heads, T, head_dim], and one's
    own. The batch is passes of one chunk; ``own`` keeps what the last of them, the clean pass, leaves in the ring."""

    def __init__(self, past: list[KeysValues]) -> None:
        self._past = past
        self.own: KeysValues | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (self._joined(index, own) for index, own in enumerate((key, value)))
        self.own = key[-1:].clone(), value[-1:].clone()
        return F.scaled_dot_product_attention(query, keys, values)

    def _joined(self, index: int, own: Tensor) -> Tensor:
        return torch.cat([*(part[index].expand(len(own), -1, -1, -1) for part in self._past), own], dim=2)


@dataclass
class Passes:
    """The passes of one chunk of one stream that are replayed together: the denoise passes if the chunk is recorded,
    then the clean pass."""

    stream: int
    chunk: int
    is_recorded: bool
    x: Tensor
    """[B, T, dim] float32 on the host: the tokens that the next block is given."""


class BlockInputs:
    """Everything that a block is given for one :class:`Passes`, on the device."""

    def __init__(
        self, x: Tensor, parts: Tensor, text: Tensor, rotation: Tensor, past: list[KeysValues], tag: Passes
    ) -> None:
        self.x, self.parts, self.text, self.rotation, self.past, self.tag = x, parts, text, rotation, past, tag
        self.own: KeysValues | None = None

    def run(self, block: Block) -> Tensor:
        """The block's output, [B, T, dim] float32."""
        attend = PastAttention(self.past)
        y: Tensor = block(self.x, self.parts, self.text.expand(len(self.x), -1, -1), self.rotation, attend)
        self.own = attend.own
        return y


Observe = Callable[[BlockInputs, Tensor], None]
"""Told the inputs and the output of a block for the passes of one chunk."""


class Replay:
    """The recorded passes on their way through the blocks, which :meth:`run` takes them through in order."""

    def __init__(self, config: ModelConfig, recorded: CalibrationSet, shell: CausalVideoDiT, device: Device) -> None:
        self._config, self._set, self._device = config, recorded, device
        layout = RingLayout(config.cache.window, config.cache.sink, config.cache.chunk)
        self._visible = [visible_chunks(layout, chunk) for chunk in range(recorded.chunks[-1] + 1)]
        self._texts: list[Tensor] = []
        self._parts: dict[bool, Tensor] = {}
        self._times: dict[bool, Tensor] = {}
        self.passes: list[Passes] = []
        self._embed(shell)

    @torch.no_grad()
    def _embed(self, shell: CausalVideoDiT) -> None:
        for number, stream in enumerate(self._set.streams):
            for chunk in range(len(self._visible)):
                is_recorded = chunk in self._set.chunks
                latents = self._latents(stream, chunk)
                sigmas = torch.tensor([*self._set.sigmas, 0.0] if is_recorded else [0.0])
                timestep = (1000 * sigmas)[:, None].expand(-1, latents.shape[2])
                embedded = shell.embed(
                    latents.to(self._device.name), timestep.to(self._device.name), stream.context.to(self._device.name)
                )
                self._parts[is_recorded], self._times[is_recorded] = embedded.time_parts, embedded.time
                self.passes.append(Passes(number, chunk, is_recorded, embedded.x.cpu()))
            self._texts.append(embedded.text.cpu())

    def _latents(self, stream: Stream, chunk: int) -> Tensor:
        """The inputs of a chunk's passes, [B, C, F, H, W], the clean one last."""
        clean = stream.clean[chunk : chunk + 1]
        if chunk not in self._set.chunks:
            return clean
        return torch.cat([stream.noisy[self._set.chunks.index(chunk)], clean])

    @torch.no_grad()
    def run(self, block: Block, observe: Observe | None = None) -> None:
        """Take all passes through a block. ``observe`` may run it again on what it is told."""
        cache: dict[int, KeysValues] = {}
        for passes in self.passes:
            if passes.chunk == 0:
                cache = {}
            inputs = self._inputs(passes, [cache[chunk] for chunk in self._visible[passes.chunk]])
            y = inputs.run(block)
            assert inputs.own is not None
            cache[passes.chunk] = inputs.own
            if observe is not None:
                observe(inputs, y)
            passes.x = y.cpu()

    def velocities(self, shell: CausalVideoDiT) -> Iterator[tuple[Passes, Tensor]]:
        """What the head makes of the last block's tokens: velocities [B, C, F, H, W] of each :class:`Passes`."""
        for passes in self.passes:
            shape = self._latents(self._set.streams[passes.stream], passes.chunk).shape
            with torch.no_grad():
                yield passes, shell.project(passes.x.to(self._device.name), self._times[passes.is_recorded], shape)

    def _inputs(self, passes: Passes, past: list[KeysValues]) -> BlockInputs:
        name = self._device.name
        text = self._texts[passes.stream].to(name)
        return BlockInputs(
            passes.x.to(name), self._parts[passes.is_recorded], text, self._rotation(passes.chunk), past, passes
        )

    def _rotation(self, chunk: int) -> Tensor:
        """Rotary tables of a chunk's tokens, as the runtime makes them."""
        config = self._config
        height, width = self._set.streams[0].clean.shape[-2:]
        patch, frames = config.denoiser.patch, config.cache.chunk
        positions = (np.arange(chunk * frames, (chunk + 1) * frames), np.arange(height // patch[1]))
        tables = [
            torch.from_numpy(axis_table(values, channels, config.denoiser.rope_theta))
            for values, channels in zip(
                (*positions, np.arange(width // patch[2])), config.denoiser.rope_split, strict=True
            )
        ]
        return token_rotation((tables[0], tables[1], tables[2])).to(self._device.name)


def visible_chunks(layout: RingLayout, chunk: int) -> tuple[int, ...]:
    """The past chunks whose keys and values are still in the ring when ``chunk`` has taken its slot."""
    slots: dict[int, int] = {}
    for number in range(chunk + 1):
        slots[layout.slot(number)] = number
    return tuple(sorted(number for number in slots.values() if number != chunk))
