"""What a K/V ring of codes costs the bundled model, and what each measure against it gives: a table.

    python -m scripts.postcard.ring_study --out runs/ring.json
    python -m scripts.postcard.ring_study --count 0 --accuracy 12 --variants codes-4-keep-0.5

First attention alone: streams run with a float16 ring, every variant keeps its own ring of the same keys and values,
and the signal-to-noise ratio of its outputs is taken over all layers and passes. Then whole videos of held-out prompts,
from the same noise: PSNR against those of the float16 ring, of the first seconds and of all. With `--accuracy` the
attribute classifier (`python -m scripts.postcard.export_classifier` writes it) reads clips of the evaluation prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.kv_cache import most_live
from rtgen.config.locate import bundled_directory
from rtgen.config.model import ModelConfig
from rtgen.fidelity.attributes import Classifier, read_evaluation
from rtgen.plugins import quantized_kv_cache_attention_reference as reference
from scripts.postcard.grammar import canonical_caption, held_out_scenes
from scripts.postcard.render import FRAME_RATE
from scripts.postcard.rollout import BatchStream, Parts, WindowRing, load_parts, shipped_sampling
from scripts.postcard.training import postcard_config

STREAMS = 4
"""Of evaluation prompts at once."""

States = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one ring of codes and one layer: codes, scales, centres, pages."""
Ring = Callable[[BatchStream], WindowRing]
"""Makes the ring that a stream is to use, for the stream's own batch and sizes."""


class RoundedRing(WindowRing):
    """A ring of floats that were rounded to what some codes can say, in another basis if ``rotates``."""

    def __init__(self, stream: BatchStream, quantize: Callable[[Tensor], Tensor], *, rotates: bool = False) -> None:
        batch = stream.branches * stream.shape[0]
        config, tokens = stream.parts.config, stream.rows * stream.columns
        super().__init__(config, batch, tokens, stream.parts.device, torch.float32)
        self._quantize, self._rotates = quantize, rotates

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self._rotates:
            return super().__call__(layer, query, self._quantize(key), self._quantize(value))
        key, value = (self._quantize(reference.rotate(tensor)) for tensor in (key, value))
        return reference.rotate(super().__call__(layer, reference.rotate(query), key, value))


class CodedRing(WindowRing):
    """The operator's own arithmetic, ``rtgen::QuantizedKVCacheAttention``.

    ``centred``: with means subtracted. ``chunk_bits``: the pass sees its own keys and values as codes of so many bits
    at the same scales, 16: as they are.
    """

    def __init__(
        self, stream: BatchStream, bits: int, keep: float = 1.0, *, centred: bool = True, chunk_bits: int = 0
    ) -> None:
        config, tokens = stream.parts.config, stream.rows * stream.columns
        batch = stream.branches * stream.shape[0]
        super().__init__(config, 0, tokens, stream.parts.device, torch.float32)
        self._bits, self._centred, self._chunk_bits = bits, centred, chunk_bits
        window = config.cache.window if keep < 1 else 0
        self._prune = reference.Prune(window, config.cache.sink, keep, recent=0.25)
        device = stream.parts.device
        self._states = [[self._empty(config, device) for _ in range(batch)] for _ in range(config.denoiser.layers)]

    def _empty(self, config: ModelConfig, device: torch.device) -> States:
        heads, width, cache = config.denoiser.heads, config.denoiser.head_dim, config.cache
        frames = most_live(cache.window, cache.sink, cache.chunk, self._prune.keep, self._prune.recent)
        rows = frames * self.frame_tokens + self._prune.window
        return (
            torch.zeros(2, heads, rows, width * self._bits // 8, dtype=torch.int8, device=device),
            torch.zeros(2, heads, rows, dtype=torch.float16, device=device),
            torch.zeros(2, heads, width, dtype=torch.float16, device=device),
            torch.zeros(max(self._prune.window, 1), dtype=torch.int64),
        )

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        progress = reference.Progress(self.start, self.length, self.frame_tokens, key.shape[2])
        return torch.cat(
            [
                self._attend(query[index].half()[None], key[index].half()[None], value[index].half()[None], *given)
                for index, given in enumerate((states, progress) for states in self._states[layer])
            ]
        ).to(query.dtype)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        states: States,
        progress: reference.Progress,
    ) -> Tensor:
        if self._centred and not self._chunk_bits:
            return reference.attend(query, key, value, *states, progress, self._bits, self._prune)
        codes, scales, centres, pages = states
        if self._centred and progress.is_first:
            centres.copy_(torch.stack([key[0], value[0]]).float().mean(dim=2))
        written = reference.chunk_rows(pages, progress, self._prune)
        reference.write_chunk(key, value, codes, scales, centres, written, self._bits)
        rows, bias = reference.live_rows(pages, codes.shape[2], progress, self._prune)
        if not self._chunk_bits:
            return reference.attend_rows(query, codes, scales, centres, rows, bias, self._bits)
        numbers = reference.unpack(codes[:, :, rows], self._bits).float() * scales[:, :, rows].float().unsqueeze(-1)
        own = (rows >= progress.write_index) & (rows < progress.write_index + progress.tokens)
        numbers[:, :, own] = self._fine(key, value, states, rows[own])
        kept = reference.rotate(numbers) + centres.float().unsqueeze(2)
        return F.scaled_dot_product_attention(query.float(), kept[:1], kept[1:])

    def _fine(self, key: Tensor, value: Tensor, states: States, rows: Tensor) -> Tensor:
        """The pass's own keys and values, centred and rotated, in finer steps."""
        _, scales, centres, _ = states
        rotated = reference.rotate(torch.stack([key[0], value[0]]).float() - centres.float().unsqueeze(2))
        if self._chunk_bits == 16:
            return rotated
        step = scales[:, :, rows].float().unsqueeze(-1) / 2 ** (self._chunk_bits - self._bits)
        lowest = -(2 ** (self._chunk_bits - 1))
        return (rotated / step).round().clamp(lowest, -lowest - 1) * step


def half(values: Tensor) -> Tensor:
    """To float16."""
    return values.half().float()


def asymmetric(clip: float) -> Callable[[Tensor], Tensor]:
    """Plain 4-bit rounding to nearest between the least and the greatest number of each token and head, a zero point
    among the codes. ``clip`` below 1 shortens the range: QuaRot's 0.95 (Ashkboos et al., 2024, arXiv:2404.00456)."""

    def quantize(values: Tensor) -> Tensor:
        largest = values.amax(dim=-1, keepdim=True).clamp(min=0) * clip
        smallest = values.amin(dim=-1, keepdim=True).clamp(max=0) * clip
        scale = ((largest - smallest) / 15).clamp(min=1e-8)
        zero = (-smallest / scale).round()
        return (((values / scale).round() + zero).clamp(0, 15) - zero) * scale

    return quantize


VARIANTS: Mapping[str, Ring] = {
    "plain-4": lambda stream: RoundedRing(stream, asymmetric(1.0)),
    "quarot-4": lambda stream: RoundedRing(stream, asymmetric(0.95), rotates=True),
    "codes-4": lambda stream: CodedRing(stream, 4),
    "codes-4-uncentred": lambda stream: CodedRing(stream, 4, centred=False),
    "codes-4-own-8": lambda stream: CodedRing(stream, 4, chunk_bits=8),
    "codes-4-own-16": lambda stream: CodedRing(stream, 4, chunk_bits=16),
    "codes-4-keep-0.5": lambda stream: CodedRing(stream, 4, keep=0.5),
    "codes-8": lambda stream: CodedRing(stream, 8),
    "codes-8-keep-0.5": lambda stream: CodedRing(stream, 8, keep=0.5),
}


class Compared(RoundedRing):
    """A float16 ring, beside which others are given the same; sums of squares of their errors by name."""

    def __init__(self, stream: BatchStream, others: Mapping[str, WindowRing]) -> None:
        super().__init__(stream, half)
        self._others = others
        self.signal = 0.0
        self.noise = dict.fromkeys(others, 0.0)

    def enter(self, written: int) -> None:
        super().enter(written)
        for ring in self._others.values():
            ring.enter(written)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = super().__call__(layer, query, key, value)
        self.signal += float(output.square().sum())
        for name, ring in self._others.items():
            self.noise[name] += float((ring(layer, query, key, value) - output).square().sum())
        return output


def outputs_of_attention(parts: Parts, prompts: Sequence[str], names: Sequence[str], chunks: int) -> dict[str, float]:
    """Signal-to-noise ratio of attention's outputs in dB, over all layers and passes of some chunks."""
    stream = BatchStream(parts, prompts, shipped_sampling(parts.config), seed=1)
    stream.ring = compared = Compared(stream, {name: VARIANTS[name](stream) for name in names})
    for _ in range(chunks):
        stream.next_chunk()
    return {name: 10 * math.log10(compared.signal / noise) for name, noise in compared.noise.items()}


def streamed(parts: Parts, prompts: Sequence[str], frames: int, ring: Ring, seed: int = 0) -> Tensor:
    """uint8 [B, frames, 3, H, W]."""
    stream = BatchStream(parts, prompts, shipped_sampling(parts.config), seed=seed)
    stream.ring, chunks, made = ring(stream), [], 0
    while made < frames:
        chunks.append(stream.next_chunk().cpu())
        made += chunks[-1].shape[1]
    return torch.cat(chunks, dim=1)[:, :frames]


def psnr(found: Tensor, exact: Tensor) -> list[float]:
    """Of each clip, in dB."""
    errors = (found.float() - exact.float()).square().flatten(1).mean(dim=1)
    return [10 * math.log10(255**2 / max(float(error), 1e-6)) for error in errors]


def float_ring(stream: BatchStream) -> WindowRing:
    """What the others are compared with."""
    return RoundedRing(stream, half)


def accuracy(parts: Parts, weights: Path, names: Sequence[str], count: int) -> dict[str, Any]:
    """Share of attributes that the classifier reads as asked, of the first five seconds of evaluation prompts."""
    evaluation = read_evaluation(parts.config, weights)
    assert parts.config.evaluation is not None
    classifier = Classifier(weights / parts.config.evaluation.classifier, evaluation)
    prompts = evaluation.prompts[:count]
    truth = evaluation.truth(prompts)
    found: dict[str, Any] = {}
    for name, ring in (("float16", float_ring), *((name, VARIANTS[name]) for name in names)):
        answers = []
        for start in range(0, len(prompts), STREAMS):
            texts = [prompt.prompt for prompt in prompts[start : start + STREAMS]]
            clips = streamed(parts, texts, classifier.frames, ring, seed=start)
            answers += [classifier.read(clip.permute(0, 2, 3, 1).numpy()) for clip in clips]
        right = np.array(answers) == truth
        found[name] = {"accuracy": float(right.mean()), "by_attribute": right.mean(axis=0).tolist()}
        print(f"{name}: {right.mean():.1%} of {right.size} attributes", flush=True)
    return found


def videos(parts: Parts, arguments: argparse.Namespace) -> dict[str, Any]:
    """PSNR of each variant's clips against those of the float16 ring."""
    prompts = [canonical_caption(scene) for scene in held_out_scenes(arguments.count, seed=1)]
    frames, early = round(arguments.seconds * FRAME_RATE), round(min(arguments.seconds, 2.0) * FRAME_RATE)
    exact = streamed(parts, prompts, frames, float_ring)
    found: dict[str, Any] = {}
    for name in arguments.variants:
        begun = time.monotonic()
        clips = streamed(parts, prompts, frames, VARIANTS[name])
        whole, first = psnr(clips, exact), psnr(clips[:, :early], exact[:, :early])
        found[name] = {"psnr": whole, "psnr_first": first, "wall_s": time.monotonic() - begun}
        print(
            f"{name}: PSNR {sum(whole) / len(whole):.1f} dB over {arguments.seconds:g} s"
            f" ({', '.join(f'{value:.1f}' for value in whole)}); first {early / FRAME_RATE:g} s"
            f" {sum(first) / len(first):.1f} dB",
            flush=True,
        )
    return found


@torch.no_grad()
def study(parts: Parts, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the arguments ask for."""
    found: dict[str, Any] = {}
    if arguments.chunks:
        prompts = [canonical_caption(scene) for scene in held_out_scenes(2, seed=2)]
        found["attention_snr_db"] = outputs_of_attention(parts, prompts, arguments.variants, arguments.chunks)
        for name, ratio in found["attention_snr_db"].items():
            print(f"{name}: attention {ratio:.1f} dB", flush=True)
    if arguments.count:
        found["videos"] = videos(parts, arguments)
    if arguments.accuracy:
        found["attributes"] = accuracy(parts, arguments.weights, arguments.variants, arguments.accuracy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=bundled_directory("postcard"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--chunks", type=int, default=6, help="chunks that attention is compared over; 0 leaves it out")
    parser.add_argument("--count", type=int, default=4, help="held-out prompts that are streamed; 0 leaves them out")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the streams")
    parser.add_argument("--accuracy", type=int, default=0, help="evaluation prompts that the classifier reads clips of")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = load_parts(postcard_config(), arguments.weights, arguments.weights, device)
    found = study(parts, arguments)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
