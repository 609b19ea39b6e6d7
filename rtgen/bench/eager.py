"""The baseline of ``rtgen bench pipeline``: the model's torch modules, called as they are, behind the interface of a
backend.

The ordinary pipeline drives it, so prompts, noise, sampler, passes and the window are those of ``rtgen run``. BF16 on a
CUDA GPU, FP32 on the processor. Nothing is captured, fused or compiled, and the K/V ring holds keys and values as they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rtgen.engine.manifest import ComponentEntry, TensorEntry, resolve_shape
from rtgen.export import decoder, tiny_decoder
from rtgen.export.denoiser import DenoiserPass
from rtgen.export.denoiser import tensor_table as denoiser_table
from rtgen.export.streaming import tensor_table as decoder_table
from rtgen.models.registry import load
from rtgen.quantize.device import Device
from rtgen.quantize.recorder import Ring
from rtgen.runtime.cpu import thread_count

if TYPE_CHECKING:
    from pathlib import Path

    from rtgen.config.model import ModelConfig
    from rtgen.engine.manifest import Component
    from rtgen.runtime.session import Array, Session

Step = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""One run: inputs and states by name to outputs by name."""

_ON_HOST = frozenset({"write_index", "valid_length"})
"""Inputs that decide which rows of the ring are meant; on a GPU each would wait for the work before it."""


@dataclass(frozen=True)
class EagerDevice(Device):
    """Where the baseline computes, and in what."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.name == "cpu" else torch.bfloat16

    @property
    def title(self) -> str:
        """For people."""
        if self.name == "cpu":
            return f"CPU, {torch.get_num_threads()} threads"
        return torch.cuda.get_device_name()


class EagerBackend:
    """``weights``: the folder of the model's weights as a build uses them. ``on_gpu``: on torch's CUDA GPU."""

    name = "eager torch"

    def __init__(self, config: ModelConfig, weights: Path, *, on_gpu: bool) -> None:
        torch.set_num_threads(thread_count())
        self._config, self._weights = config, weights
        self._device = EagerDevice("cuda" if on_gpu else "cpu")
        self.device = self._device.title

    def open(self, component: str) -> EagerSession:
        """Load ``text_encoder``, ``denoiser`` or ``decoder``. Raises CheckpointError."""
        openers: Mapping[str, tuple[Component, Callable[[nn.Module], EagerSession]]] = {
            "text_encoder": ("text_encoder", self._text_encoder),
            "denoiser": ("denoiser", self._denoiser),
            "decoder": ("decoder", self._decoder),
        }
        name, make = openers[component]
        return make(load(name, self._config, self._weights, "float32")[0])

    def close(self) -> None:
        """Sessions hold everything."""

    def _text_encoder(self, module: nn.Module) -> EagerSession:
        config = self._config.text_encoder
        table = text_encoder_table(self._config)
        # One that the host runs is larger than all the rest, for the baseline too.
        device = EagerDevice("cpu") if config.runs_on == "host" else self._device
        module = module.to(device.name, device.dtype)
        return EagerSession(table, device, lambda given: {"context": module(given["ids"], given["mask"]).float()})

    def _denoiser(self, module: nn.Module) -> EagerSession:
        inputs, outputs, _ = denoiser_table(self._config, "float32")
        table = ComponentEntry(file="denoiser", inputs=tuple(inputs), outputs=tuple(outputs))
        placed = module.to(self._device.name, self._device.dtype)
        return EagerDenoiser(table, self._device, self._config, DenoiserPass(placed))  # type: ignore[arg-type]

    def _decoder(self, module: nn.Module) -> EagerSession:
        kind: Any = tiny_decoder if self._config.decoder == "taehv" else decoder
        past = kind.past_frames(self._config, module)
        marks_first = self._config.decoder == "vae" and self._config.autoencoder.single_first_frame
        inputs, outputs, states = decoder_table(self._config, past, "float32", marks_first=marks_first)
        table = ComponentEntry(file="decoder", inputs=tuple(inputs), outputs=tuple(outputs), states=tuple(states))
        placed = module.to(self._device.name, self._device.dtype)
        make = kind.TinyDecoderStep if kind is tiny_decoder else kind.DecoderStep
        return EagerSession(table, self._device, _decoder_step(make(placed), table))


def text_encoder_table(config: ModelConfig) -> ComponentEntry:
    """Inputs and outputs of a text encoder."""
    tokens = config.text_encoder.max_tokens
    return ComponentEntry(
        file="text_encoder",
        inputs=tuple(TensorEntry(name=name, dtype="int64", shape=(1, tokens)) for name in ("ids", "mask")),
        outputs=(TensorEntry(name="context", dtype="float32", shape=(1, tokens, config.text_encoder.dim)),),
        runs_on=config.text_encoder.runs_on,
    )


def _decoder_step(module: nn.Module, table: ComponentEntry) -> Step:
    def step(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        past = [given[state.input] for state in table.states]
        optional = {name: given[name] for name in ("first", "latent_frames") if name in given}
        frames, *present = module(given["latents"], past, **optional)
        return {"frames": frames} | {state.output: tensor for state, tensor in zip(table.states, present, strict=True)}

    return step


class EagerSession:
    """A module as the runtime drives it (:class:`rtgen.runtime.session.Session`)."""

    def __init__(self, component: ComponentEntry, device: EagerDevice, step: Step) -> None:
        self.component = component
        self._device, self._step = device, step
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self._inputs, self._outputs = {}, {}
        shapes = {tensor.name: resolve_shape(tensor.shape, sizes) for tensor in self.component.inputs}
        for state in self.component.states:
            self._inputs[state.input] = torch.zeros(
                shapes[state.input], device=self._device.name, dtype=self._device.dtype
            )

    def write(self, name: str, value: Array) -> None:
        place = "cpu" if name in _ON_HOST else self._device.name
        self._inputs[name] = torch.from_numpy(np.array(value)).to(place)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        if not isinstance(source, EagerSession):
            raise TypeError("copy() works between sessions of one backend")
        self._inputs[name] = source._outputs[source_name]

    def run(self) -> None:
        with torch.inference_mode():
            self._outputs = self._step(self._inputs)
        for state in self.component.states:
            self._inputs[state.input] = self._outputs[state.output]

    def read(self, name: str) -> Array:
        array: Array = self._outputs[name].cpu().numpy()
        return array

    def reset(self) -> None:
        for state in self.component.states:
            self._inputs[state.input] = torch.zeros_like(self._inputs[state.input])

    def close(self) -> None:
        self._inputs, self._outputs = {}, {}
        self._step = _closed


class EagerDenoiser(EagerSession):
    """One pass of the denoiser over a ring that is written in place."""

    def __init__(
        self, component: ComponentEntry, device: EagerDevice, config: ModelConfig, module: DenoiserPass
    ) -> None:
        super().__init__(component, device, self._estimates)
        self._config, self._module = config, module
        self._ring: Ring | None = None

    def allocate(self, sizes: Mapping[str, int]) -> None:
        super().allocate(sizes)
        self._ring = None  # its memory, before the next one is made
        denoiser = self._config.denoiser
        length = self._config.cache.window * sizes["rows"] * sizes["columns"]
        self._ring = Ring(denoiser.layers, (1, denoiser.heads, length, denoiser.head_dim), self._device)

    def close(self) -> None:
        super().close()
        self._ring = None

    def _estimates(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ring = self._ring
        assert ring is not None
        ring.write_index, ring.valid_length = given["write_index"], given["valid_length"]
        tables = given["rope_time"], given["rope_height"], given["rope_width"]
        denoised, noise, change = self._module.estimates(
            given["clean"], given["noise"], given["sigma"], given["context"], tables, ring
        )
        return {"denoised": denoised, "noise_estimate": noise, "change": change}


def _closed(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    raise ValueError("the session is closed")
