"""The streaming decoder with its channels last, and its convolutions left to somebody else.

It is the form that processors are quick at: norms and activations go along memory, and 8-bit convolutions want it so.
Up to rounding it computes what :class:`rtgen.models.autoencoder.StreamingDecoder` does, whose weights it takes.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.models.autoencoder import StreamingDecoder
from rtgen.models.autoencoder_blocks import AttentionBlock, ResidualBlock, Upsample, Validity
from rtgen.models.causal_conv import CausalConv3d, FrameConv2d
from rtgen.models.layers import ChannelRMSNorm


class Convolutions(Protocol):
    """Computes the convolutions with kernels of more than one place, of the frames [F, H, W, C] of one run.

    They are asked for in the order of :class:`rtgen.models.causal_conv.StreamState`, so past frames are theirs to keep.
    """

    def inner(self, convolution: CausalConv3d | FrameConv2d, x: Tensor, *, doubled: bool = False) -> Tensor:
        """The output [F, H, W, out] float32 for x float32; ``doubled``: of x with twice the height and width."""

    def last(self, convolution: CausalConv3d, x: Tensor) -> Tensor:
        """The output of the last one, in whatever type the caller of :func:`decode` wants."""


def decode(model: StreamingDecoder, latents: Tensor, convolutions: Convolutions, first: Tensor | None = None) -> Tensor:
    """Decode normalised latents [1, C, F, h, w] float32 to what ``convolutions.last`` makes of the last convolution's
    output [stride * F, H / patch, W / patch, 3 * patch * patch]. ``first``: see ``StreamingDecoder.forward``.
    """
    decoder = model.decoder
    validity = Validity(first if model.config.single_first_frame else None)
    mean, std = model.statistics(latents.device)
    x = _pointwise(model.conv2, (latents * std + mean)[0].permute(1, 2, 3, 0))
    x = convolutions.inner(decoder.conv1, x)
    for layer in (*decoder.middle, *decoder.upsamples):
        if isinstance(layer, ResidualBlock):
            x = _residual(layer, x, convolutions, validity)
        elif isinstance(layer, Upsample):
            x, validity = _upsample(layer, x, convolutions, validity)
        else:
            x = _attention(layer, x)
    norm, _, last = decoder.head
    return convolutions.last(last, _activated(norm, x, validity))  # type: ignore[arg-type]  # Sequential has no item types


def unfold_frames(x: Tensor, patch: int) -> Tensor:
    """[F, h, w, 3 * patch * patch] as frames [F, h * patch, w * patch, 3] (``unfold_pixels``, channels last)."""
    frames, rows, columns, _ = x.shape
    x = x.reshape(frames, rows, columns, 3, patch, patch)  # of a pixel: channel, column, row in the patch
    return x.permute(0, 1, 5, 2, 4, 3).reshape(frames, rows * patch, columns * patch, 3)


def _pointwise(convolution: CausalConv3d, x: Tensor) -> Tensor:
    """A convolution whose kernel is one place."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def _existing(x: Tensor, validity: Validity, missing: int | None = None) -> Tensor:
    """x with the frames that do not exist held at zero."""
    keep = validity.existing(x.shape[0], x.device, missing)
    return x if keep is None else x * keep[:, None, None, None]


def _activated(norm: nn.Module, x: Tensor, validity: Validity) -> Tensor:
    """Norm and SiLU, which stand before all convolutions of the blocks."""
    assert isinstance(norm, ChannelRMSNorm)
    return F.silu(norm.channels_last(_existing(x, validity)))


def _residual(block: ResidualBlock, x: Tensor, convolutions: Convolutions, validity: Validity) -> Tensor:
    norm1, _, conv1, norm2, _, _, conv2 = block.residual
    y = convolutions.inner(conv1, _activated(norm1, x, validity))  # type: ignore[arg-type]  # as in decode()
    y = convolutions.inner(conv2, _activated(norm2, y, validity))  # type: ignore[arg-type]
    return y + (x if block.shortcut is None else _pointwise(block.shortcut, x))


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    tokens = block.norm.channels_last(x).flatten(1, 2)
    return x + block.attend(tokens).reshape(x.shape)


def _upsample(layer: Upsample, x: Tensor, convolutions: Convolutions, validity: Validity) -> tuple[Tensor, Validity]:
    if layer.time_conv is not None:
        opening = validity.missing + 1  # see Upsample.forward
        keep = validity.existing(x.shape[0], x.device, opening)
        pairs = convolutions.inner(layer.time_conv, _existing(x, validity, opening)).unflatten(-1, (2, -1))
        if keep is not None:
            keep = keep[:, None, None, None, None]
            pairs = pairs * keep + x.unsqueeze(3) * (1 - keep)
        x = pairs.permute(0, 3, 1, 2, 4).flatten(0, 1)
        validity = validity.doubled()
    return convolutions.inner(layer.resample[1], x, doubled=True), validity  # type: ignore[arg-type]
