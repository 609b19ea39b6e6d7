"""Recorded passes taken through the denoiser again, one block after the other.

The tokens that a block is given, for all recorded passes, are all there is in memory besides the block. Self-attention
needs the keys and values of past chunks: they are those that the block itself computes in the clean passes, which are
therefore taken along for every chunk, and forgotten when the block is done. Where the recipe's K/V ring holds codes,
they go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rtgen.models.rope import token_rotation
from rtgen.quantize.replayed_ring import RingOfCodes, RingOfFloats
from rtgen.runtime.kv_cache import RingLayout
from rtgen.runtime.rope import axis_table

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import KVCacheFormat
    from rtgen.models.dit import Block, CausalVideoDiT
    from rtgen.quantize.calibration_set import CalibrationSet, Stream
    from rtgen.quantize.device import Device
    from rtgen.quantize.replayed_ring import ReplayedAttention, ReplayedRing


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
        self,
        x: Tensor,
        parts: Tensor,
        text: Tensor,
        rotation: Tensor,
        attention: Callable[[], ReplayedAttention],
        tag: Passes,
    ) -> None:
        self.x, self.parts, self.text, self.rotation, self.tag = x, parts, text, rotation, tag
        self._attention = attention
        self.own: tuple[Tensor, ...] = ()
        """What the last run left in the ring."""

    def run(self, block: Block) -> Tensor:
        """The block's output, [B, T, dim] float32."""
        attend = self._attention()
        y: Tensor = block(self.x, self.parts, self.text.expand(len(self.x), -1, -1), self.rotation, attend)
        self.own = attend.own
        return y


Observe = Callable[[BlockInputs, Tensor], None]
"""Told the inputs and the output of a block for the passes of one chunk."""


class Replay:
    """The recorded passes on their way through the blocks, which :meth:`run` takes them through in order."""

    def __init__(
        self,
        config: ModelConfig,
        recorded: CalibrationSet,
        shell: CausalVideoDiT,
        device: Device,
        ring: KVCacheFormat | None = None,
    ) -> None:
        """``ring``: what the K/V ring holds, keys and values as they are by default."""
        self._config, self._set, self._device, self._format = config, recorded, device, ring
        self._texts: list[Tensor] = []
        self._parts: dict[bool, Tensor] = {}
        self._times: dict[bool, Tensor] = {}
        self.passes: list[Passes] = []
        self._embed(shell)

    @torch.no_grad()
    def _embed(self, shell: CausalVideoDiT) -> None:
        for number, stream in enumerate(self._set.streams):
            for chunk in range(self._set.chunks[-1] + 1):
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
        ring = self._empty_ring()
        for passes in self.passes:
            if passes.chunk == 0:
                ring = self._empty_ring()
            inputs = self._inputs(passes, ring.attention(passes.chunk))
            y = inputs.run(block)
            ring.keep(passes.chunk, inputs.own)
            if observe is not None:
                observe(inputs, y)
            passes.x = y.cpu()

    def velocities(self, shell: CausalVideoDiT) -> Iterator[tuple[Passes, Tensor]]:
        """What the head makes of the last block's tokens: velocities [B, C, F, H, W] of each :class:`Passes`."""
        for passes in self.passes:
            shape = self._latents(self._set.streams[passes.stream], passes.chunk).shape
            with torch.no_grad():
                yield passes, shell.project(passes.x.to(self._device.name), self._times[passes.is_recorded], shape)

    def _inputs(self, passes: Passes, attention: Callable[[], ReplayedAttention]) -> BlockInputs:
        name = self._device.name
        text = self._texts[passes.stream].to(name)
        return BlockInputs(
            passes.x.to(name), self._parts[passes.is_recorded], text, self._rotation(passes.chunk), attention, passes
        )

    def _empty_ring(self) -> ReplayedRing:
        config = self._config
        layout = RingLayout(config.cache.window, config.cache.sink, config.cache.chunk)
        # Eight bits are too fine to be felt (47 dB, scripts.postcard.ring_study) and would double the time of replays.
        if self._format is None or self._format.bits >= 8:
            return RingOfFloats(layout)
        height, width = self._set.streams[0].clean.shape[-2:]
        sizes = {"rows": height // config.denoiser.patch[1], "columns": width // config.denoiser.patch[2]}
        return RingOfCodes(config, self._format, layout, sizes, self._device)

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
