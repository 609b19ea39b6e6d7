"""Streams made by the sampler of the runtime, and what the denoiser was given in each pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.recipe import KVCacheFormat
from rtgen.engine.manifest import ComponentEntry
from rtgen.export.denoiser import tensor_table
from rtgen.models.kv_ring import CodedKVRing, CodedRingSettings
from rtgen.models.rope import token_rotation
from rtgen.quantize.calibration_set import CalibrationSet, Stream
from rtgen.quantize.layered import LayeredDenoiser
from rtgen.quantize.replayed_ring import empty_ring
from rtgen.runtime.denoise import Denoiser

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.engine.manifest import ModelEntry
    from rtgen.models.dit import CausalVideoDiT
    from rtgen.quantize.device import Device
    from rtgen.runtime.session import Array, Session

Advance = Callable[[float, str], None]
"""Told the fraction that is done and what comes next."""


class Ring:
    """An :class:`rtgen.models.dit.Attend` over caches that are written in place."""

    def __init__(self, layers: int, shape: Sequence[int], device: Device) -> None:
        self._keys, self._values = (
            [torch.zeros(tuple(shape), device=device.name, dtype=device.dtype) for _ in range(layers)] for _ in range(2)
        )
        self.write_index = self.valid_length = torch.zeros(1, dtype=torch.int64)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        start, valid = int(self.write_index), int(self.valid_length)
        written = slice(start, start + key.shape[2])
        keys[:, :, written], values[:, :, written] = key, value
        return F.scaled_dot_product_attention(query, keys[:, :, :valid], values[:, :, :valid])


class RecordingSession:
    """The denoiser as the runtime drives it (:class:`rtgen.runtime.session.Session`), in torch.

    ``recorded`` gets the latents [C, F, H, W] and the sigma of each pass.
    """

    def __init__(
        self, config: ModelConfig, layered: LayeredDenoiser, device: Device, ring: KVCacheFormat | None = None
    ) -> None:
        """``ring``: what the K/V ring holds, keys and values as they are by default."""
        self._format = ring or KVCacheFormat()
        inputs, outputs, states = tensor_table(config, "float32", self._format)
        self.component = ComponentEntry(
            file="denoiser.onnx", inputs=tuple(inputs), outputs=tuple(outputs), states=tuple(states)
        )
        self.recorded: list[tuple[float, Tensor]] = []
        self._config, self._layered, self._device = config, layered, device
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._ring: Ring | CodedKVRing | None = None

    def allocate(self, sizes: Mapping[str, int]) -> None:
        config = self._config
        if self._format.is_coded:
            frame = torch.tensor([sizes["rows"] * sizes["columns"]], device=self._device.name)
            tensors = empty_ring(config, self._format, sizes, self._device)
            self._ring = CodedKVRing(CodedRingSettings.of(config, self._format), *tensors, frame, frame, frame)
            return
        length = config.cache.window * sizes["rows"] * sizes["columns"]
        shape = (1, config.denoiser.heads, length, config.denoiser.head_dim)
        self._ring = Ring(config.denoiser.layers, shape, self._device)

    def write(self, name: str, value: Array) -> None:
        self._inputs[name] = torch.from_numpy(np.array(value)).to(self._device.name)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        if source is not self:
            raise ValueError("a recording session has no other to copy from")
        self._inputs[name] = self._outputs[source_name]

    @torch.no_grad()
    def run(self) -> None:
        given, ring = self._inputs, self._ring
        assert ring is not None
        sigma = given["sigma"]
        latents = (1 - sigma) * given["clean"] + sigma * given["noise"]
        self.recorded.append((float(sigma), latents[0].cpu()))
        ring.write_index, ring.valid_length = given["write_index"], given["valid_length"]
        rotation = token_rotation((given["rope_time"], given["rope_height"], given["rope_width"]))
        shell: CausalVideoDiT = self._layered.shell
        embedded = shell.embed(latents, (1000 * sigma).expand(1, latents.shape[2]), given["context"])
        x = embedded.x
        for block in self._layered.blocks():
            x = block(x, embedded.time_parts, embedded.text, rotation, ring)
        velocity = shell.project(x, embedded.time, latents.shape)
        denoised = latents - sigma * velocity
        change = (denoised - given["clean"]).square().mean().sqrt().reshape(1)
        noise = latents + (1 - sigma) * velocity
        self._outputs = {"denoised": denoised, "noise_estimate": noise, "change": change}

    def read(self, name: str) -> Array:
        array: Array = self._outputs[name].cpu().numpy()
        return array

    def reset(self) -> None:
        """A ring is never read beyond what was written into it."""

    def close(self) -> None:
        self._ring = None
        self._inputs, self._outputs = {}, {}


def record_streams(
    config: ModelConfig,
    entry: ModelEntry,
    layered: LayeredDenoiser,
    contexts: Mapping[str, Tensor],
    device: Device,
    advance: Advance,
) -> CalibrationSet:
    """Make a stream of each prompt, seeded with its number, as far as the last chunk to be recorded.

    ``contexts`` are the encoded prompts, [1, tokens, text_dim] float32. One stream is in memory at a time, with its
    K/V ring.
    """
    session = RecordingSession(config, layered, device)
    chunks = config.calibration.chunks
    height, width = config.calibration.size or config.resolution.default
    sizes = {"rows": height // config.size_step[0], "columns": width // config.size_step[1]}
    total, done, streams = len(contexts) * (chunks[-1] + 1), 0, []
    for seed, (prompt, context) in enumerate(contexts.items()):
        session.recorded = []
        denoiser = Denoiser(session, entry, sizes, seed)
        denoiser.set_context(context.numpy())
        for chunk in range(chunks[-1] + 1):
            advance(done / total, f"stream {seed + 1} of {len(contexts)}, chunk {chunk + 1} of {chunks[-1] + 1}")
            denoiser.generate(chunk, chunk * config.cache.chunk)
            done += 1
        streams.append(_stream(prompt, context, session.recorded, chunks, len(entry.sigmas)))
    session.close()
    advance(1.0, "")
    return CalibrationSet(entry.sigmas, chunks, tuple(streams))


def _stream(
    prompt: str, context: Tensor, recorded: Sequence[tuple[float, Tensor]], chunks: Sequence[int], steps: int
) -> Stream:
    """Passes come chunk by chunk: the denoise passes, then the clean one."""
    passes = torch.stack([latents for _, latents in recorded])
    latents = passes.reshape(-1, steps + 1, *passes.shape[1:])
    return Stream(prompt, context, latents[:, steps].clone(), latents[list(chunks), :steps].clone())
