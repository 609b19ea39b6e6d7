"""The streaming decoder's graph for processors: convolutions over 8-bit codes, channels last, past frames as codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from rtgen.errors import PackageInvalidError
from rtgen.export.coded_convolution import CodedConvolution
from rtgen.export.decoder import past_frames
from rtgen.export.graph import ExportedGraph
from rtgen.export.ranges import Codes
from rtgen.export.streaming import PastFrames, export_streaming, take_frames
from rtgen.models.autoencoder import StreamingDecoder
from rtgen.models.causal_conv import CausalConv3d, FrameConv2d
from rtgen.models.channels_last_decoder import decode, unfold_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtgen.config.model import ModelConfig
    from rtgen.export.ranges import DecoderRanges

LEVELS: Final = Codes(1 / 127.5, 128)
"""Of pixels in -1..1: the codes are the levels of a frame, once half a level is taken from the pixels, since 128 levels
lie below 0 and 127.5 should."""


def coded_convolutions(model: StreamingDecoder) -> Iterator[tuple[str, CausalConv3d | FrameConv2d]]:
    """The convolutions that compute on codes, by module name: all whose kernel is more than one place."""
    for name, module in model.named_modules():
        if isinstance(module, CausalConv3d | FrameConv2d) and module.kernel_size != (1, 1, 1):
            yield name, module


class CodedDecoderStep(nn.Module):
    """Latents [1, C, F, h, w] float32 to frames [stride * F, H, W, 3] uint8 and the next states.

    With ``latent_frames`` [N] int64 only these N latent frames are decoded.
    """

    def __init__(self, model: StreamingDecoder, ranges: DecoderRanges) -> None:
        """Raises PackageInvalidError for ranges of another decoder."""
        super().__init__()
        self.model = model
        self.codes = nn.ModuleDict()
        self.places: dict[nn.Module, str] = {}
        last = model.decoder.head[2]
        for name, convolution in coded_convolutions(model):
            found = ranges.convolutions.get(name)
            if found is None:
                raise PackageInvalidError(f"the ranges lack the decoder's convolution {name}")
            made, offset = (LEVELS, -0.5 * LEVELS.scale) if convolution is last else (found.made.codes, 0.0)
            self.places[convolution] = name.replace(".", "_")  # a dot would make the name a path
            self.codes[self.places[convolution]] = CodedConvolution(convolution, found.given.codes, made, offset)

    def forward(
        self,
        latents: Tensor,
        past: list[Tensor],
        first: Tensor | None = None,
        latent_frames: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        run = _Run(self, past)
        levels = decode(self.model, take_frames(latents, latent_frames), run, first)
        return unfold_frames(levels, self.model.config.pixel_patch), *run.present


class _Run:
    """The convolutions of one run (:class:`rtgen.models.channels_last_decoder.Convolutions`)."""

    def __init__(self, step: CodedDecoderStep, past: list[Tensor]) -> None:
        self.present: list[Tensor] = []
        self._step, self._past = step, iter(past)

    def inner(self, convolution: CausalConv3d | FrameConv2d, x: Tensor, *, doubled: bool = False) -> Tensor:
        return self._convolve(convolution, x, doubled=doubled)

    def last(self, convolution: CausalConv3d, x: Tensor) -> Tensor:
        return self._convolve(convolution, x, numbers=False)

    def _convolve(
        self, convolution: CausalConv3d | FrameConv2d, x: Tensor, *, doubled: bool = False, numbers: bool = True
    ) -> Tensor:
        codes = self._codes_of(convolution)
        past = next(self._past) if codes.taps > 1 else None
        made, present = codes(x, convolution.weight, past, doubled=doubled, numbers=numbers)
        if past is not None:
            self.present.append(present)
        output: Tensor = made
        return output

    def _codes_of(self, convolution: nn.Module) -> CodedConvolution:
        found: CodedConvolution = self._step.codes[self._step.places[convolution]]  # type: ignore[assignment]
        return found


def past_codes(past: list[PastFrames]) -> list[PastFrames]:
    """The states of a decoder with these past frames, as codes."""
    return [state._replace(coded=True) for state in past]


def export_coded_decoder(config: ModelConfig, model: StreamingDecoder, ranges: DecoderRanges) -> ExportedGraph:
    """Export ``model`` (float32). Raises PackageInvalidError for ranges of another decoder."""
    past = past_codes(past_frames(config, model))
    marks_first = config.autoencoder.single_first_frame
    return export_streaming(config, CodedDecoderStep(model, ranges), past, "float32", marks_first=marks_first)
