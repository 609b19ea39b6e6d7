"""What the decoder's convolutions take and give in recorded streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from rtgen.errors import CheckpointError
from rtgen.export.coded_decoder import coded_convolutions
from rtgen.export.ranges import ConvolutionRange, DecoderRanges, Range

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rtgen.models.autoencoder import StreamingDecoder
    from rtgen.quantize.calibration_set import CalibrationSet
    from rtgen.quantize.device import Device

Advance = Callable[[float, str], None]
"""Told the fraction that is done and what comes next."""

CHUNKS: Final = 2
"""Of each stream: the second one is decoded after past frames."""


@torch.no_grad()
def observe_ranges(
    model: StreamingDecoder, recorded: CalibrationSet, device: Device, advance: Advance
) -> DecoderRanges:
    """Decode the first chunks of each recorded stream, and note the extremes of each convolution.

    ``model`` is float32 on the host and is moved to ``device``. Raises CheckpointError where numbers are not finite.
    """
    model = model.to(device.name)
    chunks = min(CHUNKS, recorded.chunks[-1] + 1)
    total = len(recorded.streams) * chunks
    with _observing(model) as observed:
        for number, stream in enumerate(recorded.streams):
            past: list[Tensor] | None = None
            for chunk in range(chunks):
                place = f"stream {number + 1} of {len(recorded.streams)}, chunk {chunk + 1} of {chunks}"
                advance((number * chunks + chunk) / total, place)
                first = torch.tensor([float(chunk == 0)], device=device.name)
                _, past = model(stream.clean[chunk][None].to(device.name), first, past)
    advance(1.0, "")
    return DecoderRanges(convolutions=observed)


@contextmanager
def _observing(model: StreamingDecoder) -> Iterator[dict[str, ConvolutionRange]]:
    """While it lasts, the ranges that the convolutions were seen to have are in what it gives."""
    observed: dict[str, ConvolutionRange] = {}
    hooks = [
        convolution.register_forward_hook(partial(_observe, observed, name))
        for name, convolution in coded_convolutions(model)
    ]
    try:
        yield observed
    finally:
        for hook in hooks:
            hook.remove()


def _observe(
    observed: dict[str, ConvolutionRange], name: str, _: nn.Module, arguments: tuple[Any, ...], output: Tensor
) -> None:
    (given, made), before = (_extremes(name, tensor) for tensor in (arguments[0], output)), observed.get(name)
    if before is not None:
        given, made = (old.widened(new.low, new.high) for old, new in ((before.given, given), (before.made, made)))
    observed[name] = ConvolutionRange(given=given, made=made)


def _extremes(name: str, tensor: Tensor) -> Range:
    low, high = (float(value) for value in torch.aminmax(tensor))
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        raise CheckpointError(f"the decoder's convolution {name} meets numbers that are not finite")
    return Range(low=min(low, 0.0), high=max(high, 0.0))
