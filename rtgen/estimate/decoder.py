"""Counts of one run of a decoder: the autoencoder's own (``rtgen/models/autoencoder.py``) and the tiny one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from rtgen.config.model import Decoder, ModelConfig, Size
from rtgen.estimate.operations import Attention, Convolution, Elementwise, Operation, Product

TINY_WIDTHS = (256, 128, 64, 64)
"""Channels of the published TAEHV decoders, as in ``rtgen/models/taehv.py``, which needs torch; a test compares."""


@dataclass
class DecoderRun:
    """A walk through a decoder that adds up what it meets. Elements are of the recipe's precision."""

    frames: int
    height: int
    width: int
    operations: list[Operation] = field(default_factory=list)
    parameters: int = 0
    state: int = 0
    """Elements of past frames that live between runs, each once."""
    peak: int = 0
    """Most elements of intermediate results at a time."""

    @property
    def places(self) -> int:
        return self.frames * self.height * self.width

    def convolve(self, inputs: int, outputs: int, taps: int, *, history: int = 0, bias: bool = True) -> None:
        """A convolution at the present size that sees ``history`` earlier frames, which become a state."""
        past = history * self.height * self.width * inputs
        self.state += past
        self.parameters += taps * inputs * outputs + (outputs if bias else 0)
        read = self.places * inputs + past
        self.operations.append(Convolution("decoder", self.places, taps, inputs, outputs, read))
        self.keep(read + self.places * outputs)

    def touch(self, elements: int) -> None:
        """An element-wise kernel that reads or writes so many elements in all."""
        self.operations.append(Elementwise("decoder", 0, elements))

    def keep(self, elements: int) -> None:
        self.peak = max(self.peak, elements)

    def enlarge(self, channels: int) -> None:
        """Double height and width."""
        self.touch(5 * self.places * channels)
        self.height, self.width = 2 * self.height, 2 * self.width


def decoder_run(model: ModelConfig, size: Size) -> DecoderRun:
    """What one run does for frames of ``size`` pixels: ``model.decoded_at_once`` latent frames."""
    stride = model.autoencoder.spatial_stride
    run = DecoderRun(model.decoded_at_once, size[0] // stride, size[1] // stride)
    _WALKS[model.decoder](run, model)
    return run


def _tiny(run: DecoderRun, model: ModelConfig) -> None:
    run.convolve(model.autoencoder.latent_channels, TINY_WIDTHS[0], 9)
    for inside, outside, frames in zip(TINY_WIDTHS, TINY_WIDTHS[1:], (1, 2, 2), strict=False):
        for _ in range(3):
            run.state += run.height * run.width * inside
            run.convolve(2 * inside, inside, 9)  # over the frame and the one before it
            run.convolve(inside, inside, 9)
            run.convolve(inside, inside, 9)
            run.keep(run.places * 4 * inside)
        run.enlarge(inside)
        run.convolve(inside, inside * frames, 1, bias=False)
        run.frames *= frames
        run.convolve(inside, outside, 9, bias=False)
    run.convolve(TINY_WIDTHS[-1], 3, 9)
    run.touch(run.places * 6)


def _autoencoder(run: DecoderRun, model: ModelConfig) -> None:
    config = model.autoencoder
    base = config.decoder_base_channels or config.base_channels
    widths = [base * multiplier for multiplier in (config.multipliers[-1], *config.multipliers[::-1])]
    temporal = config.temporal_downsample[::-1]
    run.convolve(config.latent_channels, config.latent_channels, 1)
    run.convolve(config.latent_channels, widths[0], 27, history=2)
    _residual(run, widths[0], widths[0])
    _attention(run, widths[0])
    _residual(run, widths[0], widths[0])
    for level, (inside, outside) in enumerate(pairwise(widths)):
        entering = inside if level == 0 else inside // 2
        for block in range(config.residual_blocks + 1):
            _residual(run, entering if block == 0 else outside, outside)
        if level < len(temporal):
            _upsample(run, outside, temporal=temporal[level])
    _norm(run, widths[-1])
    run.convolve(widths[-1], 3 * config.pixel_patch**2, 27, history=2)
    run.touch(run.places * 6 * config.pixel_patch**2)


def _norm(run: DecoderRun, channels: int) -> None:
    """Norm and SiLU in one kernel."""
    run.parameters += channels
    run.touch(2 * run.places * channels)


def _residual(run: DecoderRun, inputs: int, outputs: int) -> None:
    _norm(run, inputs)
    run.convolve(inputs, outputs, 27, history=2)
    _norm(run, outputs)
    run.convolve(outputs, outputs, 27, history=2)
    if inputs != outputs:
        run.convolve(inputs, outputs, 1)
    run.touch(3 * run.places * outputs)
    frame = run.height * run.width
    run.keep(run.places * (inputs + 2 * outputs) + 2 * frame * outputs)  # x, the second's input with its past, output


def _attention(run: DecoderRun, channels: int) -> None:
    frame = run.height * run.width
    _norm(run, channels)
    run.operations += [
        Product("decoder", "to_qkv", run.places, channels, 3 * channels),
        Attention("decoder", frame, frame, channels, times=run.frames),
        Product("decoder", "proj", run.places, channels, channels),
    ]
    run.parameters += 4 * channels * channels + 4 * channels
    run.touch(3 * run.places * channels)


def _upsample(run: DecoderRun, channels: int, *, temporal: bool) -> None:
    if temporal:
        run.convolve(channels, 2 * channels, 3, history=2)
        run.frames *= 2
    run.enlarge(channels)
    run.convolve(channels, channels // 2, 9)


_WALKS: Mapping[Decoder, Callable[[DecoderRun, ModelConfig], None]] = {"vae": _autoencoder, "taehv": _tiny}
