"""Linear layers as ``rtgen::W4A4Linear`` computes them: codes, smoothing, shift, rotation and low-rank branch.

Weights alone are easily rounded (:mod:`rtgen.quantize.compensated`); most of the error comes from the 16 codes that an
activation has. What is done against it:

1. **Low-rank branch** (SVDQuant): the directions of the output in which the error of the activations would be largest
   go through two thin float16 matrices, which take the input unrounded. Less is left for the codes.
2. **Shift**: the mean of each channel is subtracted before rounding. Its product with the weight is known beforehand
   and goes into the bias, together with the mean of the error that remains.
3. **Smoothing**: channels are scaled so that large ones cost no more than small ones. The errors of activations and of
   weights are both proportional to |x| |w|, summed over channels; for |x| and |w| as root mean squares the sum is least
   where both have the same size, a strength of 0.5. Other strengths are tried too.
4. **Rotation** (QuaRot) of each group of 64, which spreads outliers over the group.

Rotation and smoothing are decided by the measured error of the outputs, with activations rounded exactly as the
operator rounds them. Layers that read one input share both, so that it is rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.plugins.w4a4_linear import HIGHEST, LOWEST, quantize_groups, rotate_groups
from rtgen.plugins.w4a4_linear_kernel import GROUP
from rtgen.quantize.compensated import Compensation

JUDGED: Final = 0.25
"""Share of the samples, the last ones, that nothing is fitted to."""

STRENGTHS: Final = (0.5, 0.25, 0.75)
"""Of smoothing: 0 leaves it to the weights, 1 makes all channels of the input alike."""

SEARCH_ROWS: Final = 1024
"""Samples that candidates are compared on."""

SHARES: Final = (1.0, 0.93, 0.86, 0.79, 0.72)
"""Candidates for the share of a block's extreme that the code -8 stands for. A smaller one makes finer steps."""

OVERSAMPLING: Final = 16
ITERATIONS: Final = 3
"""Of the subspace iteration that finds a branch (Halko et al., 2011, arXiv:0909.4061)."""

TOO_LARGE: Final = "its numbers are too large for float16"


@dataclass(frozen=True)
class W4A4Layer:
    """A quantized layer: the operator's inputs (:mod:`rtgen.plugins.w4a4_linear`), with codes that are not packed."""

    codes: Tensor
    """[out, in] int8, -8 to 7."""
    scales: Tensor
    """[out, in / 64] float16; may be negative."""
    pre_scale: Tensor
    """[in] float16."""
    shift: Tensor
    """[in] float16."""
    low_rank_down: Tensor
    """[rank, in] float16."""
    low_rank_up: Tensor
    """[out, rank] float16."""
    bias: Tensor
    """[out] float16; takes the place of the layer's own."""
    rotated: bool
    snr_db: float
    """Signal-to-noise ratio of the output, without its bias, on samples that nothing was fitted to; at most 200."""


class SignedInt4:
    """INT4 in blocks for :class:`rtgen.quantize.compensated.Compensation`, with scales of either sign: that which lets
    the code -8 stand for the extreme of a block. Of some sizes, the one with the least squared error."""

    block = GROUP

    def scales(self, weights: Tensor) -> Tensor:
        extreme = weights.gather(1, weights.abs().argmax(dim=1, keepdim=True))[:, 0]
        least, best = torch.full_like(extreme, torch.inf), torch.zeros_like(extreme)
        for share in SHARES:
            scale = _as_half(extreme * share / LOWEST)
            units = self.units(weights / torch.where(scale == 0, torch.inf, scale)[:, None])
            error = (weights - units * scale[:, None]).square().sum(dim=1)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best

    def units(self, values: Tensor) -> Tensor:
        return values.round().clamp(LOWEST, HIGHEST)


@dataclass(frozen=True)
class _Treatment:
    """What is done to the input; float32 numbers that float16 represents."""

    pre_scale: Tensor
    shift: Tensor
    rotated: bool

    def smooth(self, x: Tensor) -> Tensor:
        return x * self.pre_scale - self.shift

    def rounded(self, smooth: Tensor) -> Tensor:
        """The smoothed input as its codes have it, rotated where it is."""
        codes, scales = quantize_groups(rotate_groups(smooth) if self.rotated else smooth)
        return (codes * scales).reshape(smooth.shape)

    def errors(self, smooth: Tensor) -> Tensor:
        """What rounding does to the smoothed input, seen before the rotation, which is its own inverse."""
        exact = rotate_groups(smooth) if self.rotated else smooth
        errors = self.rounded(smooth) - exact
        return rotate_groups(errors) if self.rotated else errors

    def turned(self, weight: Tensor) -> Tensor:
        return rotate_groups(weight) if self.rotated else weight


def quantize_w4a4(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    samples: Tensor,
    *,
    rank: int,
    rotation: bool,
) -> list[W4A4Layer]:
    """Quantize the layers, y = x @ weight.T + bias, that read one input.

    ``weights``: [out, in] each; ``biases``: [out] or None; ``samples`` [rows, in]: inputs that they meet, from as many
    different passes as there are. 2,000 rows are enough; the last quarter is kept for measuring, so let it come from
    other streams. Any float type, on one device, which computes. ``rank`` of each branch; 0 leaves it empty.
    ``rotation``: whether it may be used.

    The same arguments give the same bits on one machine. Raises ValueError where ``in`` is no multiple of 64, for
    numbers that are not finite, and for those that leave float16.
    """
    weights, samples = [weight.detach().float() for weight in weights], samples.detach().float()
    _check(weights, samples)
    boundary = max(1, round(len(samples) * (1 - JUDGED)))
    fitted, judged = samples[:boundary], samples[boundary:] if boundary < len(samples) else samples
    few = fitted[:: -(-len(fitted) // SEARCH_ROWS)]
    exact = F.linear(few, torch.cat(weights))
    candidates = _candidates(torch.cat(weights), few, rank, rotation)
    best = min(candidates, key=lambda treatment: _error(weights, few, exact, treatment, rank))
    group = _Group(best, fitted, judged, rank)
    layers = [group.quantize(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    for layer in layers:
        _check_result(layer)
    return layers


def signal_to_noise(exact: Tensor, found: Tensor) -> float:
    """10 log10 of the energy of ``exact`` over that of the difference, in dB, within -200 .. 200."""
    signal, noise = float(exact.double().square().sum()), float((exact - found).double().square().sum())
    return max(-200.0, min(200.0, 10 * (math.log10(signal + 1e-300) - math.log10(noise + 1e-300))))


def _candidates(weight: Tensor, samples: Tensor, rank: int, rotation: bool) -> Iterator[_Treatment]:
    mean = samples.mean(dim=0)
    for rotated in (False, True) if rotation else (False,):
        for strength in STRENGTHS:
            first = _treatment(_pre_scale(samples - mean, weight, strength), mean, rotated=rotated)
            scaled = weight / first.pre_scale
            up, down = branch(scaled, first.errors(first.smooth(samples)), rank)
            left = (scaled - up @ down) * first.pre_scale  # what the codes will have to carry
            yield _treatment(_pre_scale(samples - mean, left, strength), mean, rotated=rotated)


def _treatment(pre_scale: Tensor, mean: Tensor, *, rotated: bool) -> _Treatment:
    pre_scale = _as_half(pre_scale)
    return _Treatment(pre_scale, _as_half(mean * pre_scale), rotated)


def _pre_scale(samples: Tensor, weight: Tensor, strength: float) -> Tensor:
    """|w| ** (1 - strength) / |x| ** strength of each channel; 1 in the geometric mean. Channels that are next to
    nothing in one of the two are not stretched beyond reason."""
    inputs, outputs = (values.square().mean(dim=0).sqrt() for values in (samples, weight))
    inputs, outputs = (values.clamp(min=1e-3 * float(values.max()) + 1e-20) for values in (inputs, outputs))
    log = (1 - strength) * outputs.log() - strength * inputs.log()
    return (log - log.mean()).exp()


def _error(weights: Sequence[Tensor], samples: Tensor, exact: Tensor, treatment: _Treatment, rank: int) -> float:
    """Sum of the layers' relative squared errors with the weights as they are, apart from a constant offset.

    ``exact`` [rows, all outputs] is what the layers give.
    """
    smooth = treatment.smooth(samples)
    rounded, errors = treatment.rounded(smooth), treatment.errors(smooth)
    total = 0.0
    parts = torch.split(exact, [len(weight) for weight in weights], dim=1)
    for weight, wanted in zip(weights, parts, strict=True):
        scaled = weight / treatment.pre_scale
        up, down = branch(scaled, errors, rank)
        found = F.linear(rounded, treatment.turned(scaled - up @ down)) + F.linear(F.linear(smooth, down), up)
        missed = wanted - found
        signal = wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        total += float((missed - missed.mean(dim=0)).square().sum() / signal)
    return total


class _Group:
    """The layers of one input, whose treatment is decided."""

    def __init__(self, treatment: _Treatment, fitted: Tensor, judged: Tensor, rank: int) -> None:
        self._treatment, self._rank = treatment, rank
        self._fitted, self._judged = fitted, judged
        self._smooth = treatment.smooth(fitted)
        self._rounded = treatment.rounded(self._smooth)
        self._errors = treatment.errors(self._smooth)
        self._compensation = Compensation(self._rounded)

    def quantize(self, weight: Tensor, bias: Tensor | None) -> W4A4Layer:
        scaled = weight / self._treatment.pre_scale
        up, down = branch(scaled, self._errors, self._rank)
        units, scales = self._compensation.round(self._treatment.turned(scaled - up @ down), SignedInt4())
        stored = units * scales.repeat_interleave(GROUP, dim=1)

        def output(smooth: Tensor, rounded: Tensor) -> Tensor:
            return F.linear(rounded, stored) + F.linear(F.linear(smooth, down), up)

        offset = (F.linear(self._fitted, weight) - output(self._smooth, self._rounded)).mean(dim=0)
        smooth = self._treatment.smooth(self._judged)
        found = output(smooth, self._treatment.rounded(smooth)) + offset
        return W4A4Layer(
            codes=units.to(torch.int8),
            scales=scales.half(),
            pre_scale=self._treatment.pre_scale.half(),
            shift=self._treatment.shift.half(),
            low_rank_down=down.half(),
            low_rank_up=up.half(),
            bias=(offset if bias is None else offset + bias.detach().float()).half(),
            rotated=self._treatment.rotated,
            snr_db=signal_to_noise(F.linear(self._judged, weight), found),
        )


def branch(weight: Tensor, errors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Matrices up [out, rank] and down [rank, in], which float16 represents, so that (weight - up @ down) @ errors is
    small.

    ``up`` are the directions of the output in which ``weight`` [out, in] @ ``errors`` [rows, in] has most energy, with
    the errors of different channels taken for independent: what few samples show beyond that holds for no others.
    """
    rank = min(rank, *weight.shape)
    if not rank:
        return weight.new_zeros((len(weight), 0)), weight.new_zeros((0, weight.shape[1]))
    scaled = weight * errors.square().mean(dim=0).sqrt()
    if not scaled.isfinite().all():
        raise ValueError(TOO_LARGE)
    up = _leading_directions(scaled, rank)
    down = up.T @ weight
    balance = down.norm(dim=1).clamp(min=1e-20).sqrt()  # of equal norm, both stay far from the ends of float16
    return _as_half(up * balance), _as_half(down / balance[:, None])


def _leading_directions(matrix: Tensor, rank: int) -> Tensor:
    """The first ``rank`` left singular vectors of ``matrix`` [out, in], nearly: [out, rank]."""
    count = min(rank + OVERSAMPLING, *matrix.shape)
    start = torch.randn(matrix.shape[1], count, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis: Tensor = torch.linalg.qr(matrix @ start)[0]
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis))[0]
    projected = basis.T @ matrix
    _, inner = torch.linalg.eigh((projected @ projected.T).double())  # ascending
    leading: Tensor = basis @ inner.flip(1)[:, :rank].float()
    return leading


def _as_half(values: Tensor) -> Tensor:
    """As float16 would have it, in float32."""
    return values.half().float()


def _check(weights: Sequence[Tensor], samples: Tensor) -> None:
    for weight in weights:
        if weight.ndim != 2 or weight.shape[1] % GROUP:
            raise ValueError(f"a matrix of shape {list(weight.shape)} has no whole groups of {GROUP}")
        if samples.ndim != 2 or not len(samples) or samples.shape[1] != weight.shape[1]:
            raise ValueError(f"samples of shape {list(samples.shape)} are no inputs of a matrix {list(weight.shape)}")
    if not all(bool(tensor.isfinite().all()) for tensor in (*weights, samples)):
        raise ValueError("it holds numbers that are not finite")


def _check_result(layer: W4A4Layer) -> None:
    tensors = (layer.scales, layer.pre_scale, layer.shift, layer.low_rank_down, layer.low_rank_up, layer.bias)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError(TOO_LARGE)
