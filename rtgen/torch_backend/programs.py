"""What one execution of a component computes, on named tensors: the modules that the graphs are exported from."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from rtgen.errors import PackageInvalidError
from rtgen.export.decoder import DecoderStep
from rtgen.export.denoiser import DenoiserPass
from rtgen.export.tiny_decoder import TinyDecoderStep
from rtgen.models.autoencoder import StreamingDecoder, latent_statistics
from rtgen.models.kv_ring import CodedRingSettings
from rtgen.torch_backend.fused import FusedDenoiser
from rtgen.torch_backend.rings import InPlaceCodedRing, InPlaceRing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rtgen.engine.manifest import ComponentEntry
    from rtgen.models.dit import Attend, CausalVideoDiT
    from rtgen.models.taehv import TinyDecoder
    from rtgen.models.text_encoder import TextEncoder
    from rtgen.torch_backend.description import Description
    from rtgen.torch_backend.steps import Steps


class Program(Protocol):
    """One execution. It enqueues work on the current device only, and waits for none of it."""

    host_numbers: tuple[str, ...]
    """Inputs, one number each, whose values are needed on the host too."""
    is_capturable: bool
    """Whether everything that it does can be part of a CUDA graph."""
    prepared_from: tuple[str, ...]
    """Inputs that seldom change. Once they have been written, :meth:`prepare` comes before the next execution."""

    def kind(self, numbers: Mapping[str, int]) -> int:
        """Executions of one kind, at one size, enqueue the same kernels."""

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Compute what depends on those inputs alone."""

    def __call__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Mapping[str, Tensor]:
        """The outputs that are no states; states are updated in place in ``tensors``. ``numbers``: those of the host.

        Raises ValueError for numbers that do not fit the tensors.
        """


class _OneKind:
    """A program whose executions are all of one kind, and complete."""

    host_numbers: tuple[str, ...] = ()
    prepared_from: tuple[str, ...] = ()

    def kind(self, numbers: Mapping[str, int]) -> int:
        return 0

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        pass


class TextEncoderProgram(_OneKind):
    """The text encoder with its weights on the device."""

    is_capturable = False  # it runs once a prompt, and makes tables on the host

    def __init__(self, model: TextEncoder) -> None:
        self._model = model

    def __call__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Mapping[str, Tensor]:
        return {"context": self._model(tensors["ids"], tensors["mask"])}


class StreamedTextEncoder(TextEncoderProgram):
    """A text encoder that stays in its files: each block is brought to the device when it is its turn, in float32."""

    def __init__(self, model: TextEncoder, device: torch.device) -> None:
        super().__init__(model)
        self._device = device

    def __call__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Mapping[str, Tensor]:
        model, (ids, mask) = self._model, (tensors["ids"], tensors["mask"])
        # The rows of a prompt are looked up where the table is.
        x, buckets, padding = (part.to(self._device) for part in model.embed(ids.cpu(), mask.cpu()))
        for block in model.blocks:
            x = self._brought(block)(x, buckets, padding)
        norm = self._brought(model.norm)
        return {"context": norm(x) * mask.float().unsqueeze(-1)}

    def _brought(self, module: torch.nn.Module) -> torch.nn.Module:
        return deepcopy(module).to(self._device, torch.float32)


class DenoiserProgram:
    """A pass of the denoiser, with the ring as it is (see ``rtgen.export.denoiser``)."""

    is_capturable = True

    def __init__(
        self,
        model: CausalVideoDiT,
        entry: ComponentEntry,
        coded: CodedRingSettings | None,
        steps: Steps | None = None,
    ) -> None:
        """``steps``: what computes between products; without them the model's own modules do."""
        self._fused = None if steps is None else FusedDenoiser(model, steps)
        self._pass, self._coded = DenoiserPass(self._fused or model), coded  # type: ignore[arg-type]  # called alike
        self.prepared_from: tuple[str, ...] = () if self._fused is None else ("context",)
        self._states = [state.input for state in entry.states]
        self.host_numbers: tuple[str, ...] = () if coded else ("write_index", "valid_length")

    def kind(self, numbers: Mapping[str, int]) -> int:
        return numbers.get("valid_length", 0)

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        if self._fused is not None:
            self._fused.prepare(tensors["context"])

    def __call__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Mapping[str, Tensor]:
        time, height, width = (tensors[f"rope_{axis}"] for axis in ("time", "height", "width"))
        tokens = time.shape[0] * height.shape[0] * width.shape[0]
        denoised, noise, change = self._pass.estimates(
            tensors["clean"],
            tensors["noise"],
            tensors["sigma"],
            tensors["context"],
            (time, height, width),
            self._ring(tensors, numbers, tokens),
        )
        return {"denoised": denoised, "noise_estimate": noise, "change": change}

    def _ring(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], tokens: int) -> Attend:
        states = [tensors[name] for name in self._states]
        if self._coded is not None:
            layers = len(states) // 4
            codes, scales, centres, pages = (states[kind * layers : (kind + 1) * layers] for kind in range(4))
            places = tensors["write_index"], tensors["valid_length"], tensors["frame_tokens"]
            return InPlaceCodedRing(self._coded, codes, scales, centres, pages, places)
        start, valid = numbers["write_index"], numbers["valid_length"]
        if not 0 <= start <= start + tokens <= valid <= states[0].shape[2]:
            raise ValueError(f"the chunk [{start}, {start + tokens}) does not fit the ring or its valid length {valid}")
        layers = len(states) // 2
        return InPlaceRing(states[:layers], states[layers:], tensors["write_index"], valid)


class DecoderProgram(_OneKind):
    """A run of either decoder (see ``rtgen.export.streaming``)."""

    is_capturable = True

    def __init__(self, step: Callable[..., tuple[Tensor, ...]], entry: ComponentEntry) -> None:
        self._step = step
        self._states = [state.input for state in entry.states]
        self._options = [t.name for t in entry.inputs if t.name in ("first", "latent_frames")]

    def __call__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Mapping[str, Tensor]:
        past = [tensors[name] for name in self._states]
        options = {name: tensors[name] for name in self._options}
        frames, *present = self._step(latents=tensors["latents"], past=past, **options)
        for state, value in zip(past, present, strict=True):  # everything that reads them is enqueued before
            state.copy_(value)
        return {"frames": frames}


def program_of(
    module: torch.nn.Module,
    entry: ComponentEntry,
    description: Description,
    device: torch.device,
    steps: Steps | None = None,
) -> Program:
    """The program of a loaded denoiser or decoder. Raises PackageInvalidError."""
    if any(state.update != "in_place" for state in entry.states):
        raise PackageInvalidError(f"{entry.file}: a torch package updates its states in place")
    if any(tensor.name == "clean" for tensor in entry.inputs):
        ring = description.kv_cache
        coded = CodedRingSettings.of(description.model, ring) if ring.is_coded else None
        return DenoiserProgram(cast("CausalVideoDiT", module), entry, coded, steps)
    if isinstance(module, StreamingDecoder):
        fixed = latent_statistics(module.config, device)  # numbers of the host cannot be part of a CUDA graph
        module.statistics = partial(_given, fixed)
        return DecoderProgram(DecoderStep(module), entry)
    return DecoderProgram(TinyDecoderStep(cast("TinyDecoder", module)), entry)


def _given(value: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return value
