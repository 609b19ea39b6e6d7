"""What W4A4 costs the bundled model, and what the measures against it give: a table, a few minutes on one GPU.

    python -m scripts.postcard.w4a4_study --out runs/w4a4.json
    python -m scripts.postcard.w4a4_study --count 2 --seconds 30 --variants rank-32

Inputs of the layers are recorded from streams of the calibration prompts. Each variant then quantizes all layers of the
blocks: the signal-to-noise ratio of their outputs is given by kind of layer, and the videos of held-out prompts are
compared with those of the unquantized model, from the same noise: PSNR of the first 5 seconds, and how far brightness
and frame-to-frame change of the last 5 seconds are off. `--felt` quantizes one kind of layer at a time and says what
that does to the velocity. The models run in torch; layers are simulated with the operator's codes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.config.load import load_recipe
from rtgen.config.locate import calibration_files
from rtgen.config.recipe import LowRank, Quantization
from rtgen.quantize.prompts import read_prompts
from rtgen.quantize.rounding import quantize_group, snr_db
from rtgen.quantize.samples import InputGroup, SampleCollector
from rtgen.quantize.simulate import SimulatedLinear
from rtgen.quantize.w4a4 import branch
from scripts.postcard.grammar import canonical_caption, held_out_scenes
from scripts.postcard.render import FRAME_RATE
from scripts.postcard.rollout import BatchStream, Parts, load_parts, shipped_sampling
from scripts.postcard.training import postcard_config

WINDOW = 5 * FRAME_RATE
"""Frames that PSNR and drift are taken over."""

ROWS_PER_PASS = 256
RECORDED_CHUNKS = 2

Layer = Callable[[Tensor], Tensor]
"""Inputs [..., in] to outputs [..., out]."""
Quantize = Callable[[Mapping[str, nn.Linear], InputGroup], dict[str, Layer]]


def recorded(parts: Parts, prompts: Sequence[str]) -> list[InputGroup]:
    """What the linear layers of the blocks are given, for layers that share an input together."""
    wanted = {
        f"blocks.{name}" for name, module in parts.denoiser.blocks.named_modules() if isinstance(module, nn.Linear)
    }
    collector = SampleCollector(parts.denoiser, wanted, ROWS_PER_PASS, seed=0)
    stream = BatchStream(parts, prompts, shipped_sampling(parts.config), seed=100)
    handle = parts.denoiser.register_forward_hook(lambda *_: collector.next_call(is_sampled=True))
    with collector.collecting():
        for _ in range(RECORDED_CHUNKS):
            stream.next_chunk()
    handle.remove()
    return collector.groups


def by_recipe(rank: int, *, rotation: bool = True) -> Quantize:
    """As the recipe `int4` does it, with another rank."""
    settings = load_recipe("int4").quantization
    assert settings is not None and settings.activations is not None
    changes: dict[str, Any] = {"activations": settings.activations.model_copy(update={"rotation": rotation})}
    changes["low_rank"] = LowRank(rank=rank) if rank else None
    changed: Quantization = settings.model_copy(update=changes)

    def quantize(linears: Mapping[str, nn.Linear], group: InputGroup) -> dict[str, Layer]:
        assert group.amax is not None
        made = quantize_group(linears, group.inputs, group.amax, changed)
        return {
            each.result.name: SimulatedLinear(each.result, each.tensors, linears[each.result.name].bias)
            for each in made
        }

    return quantize


def as_published(rank: int) -> Quantize:
    """SVDQuant's own measures: smoothing by the greatest magnitudes, the largest singular values apart, everything else
    rounded to nearest with amax / 7 for a scale (arXiv:2411.05007)."""

    def nearest(values: Tensor) -> Tensor:
        groups = values.reshape(*values.shape[:-1], -1, 64)
        scale = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 7
        return ((groups / scale).round().clamp(-7, 7) * scale).reshape(values.shape)

    def quantize(linears: Mapping[str, nn.Linear], group: InputGroup) -> dict[str, Layer]:
        assert group.amax is not None
        stacked = torch.cat([linear.weight for linear in linears.values()])
        factors = (stacked.abs().amax(dim=0).clamp(min=1e-5) / group.amax.clamp(min=1e-5)).sqrt()

        def layer(linear: nn.Linear) -> Layer:
            scaled = linear.weight / factors
            up, down = branch(scaled, torch.ones_like(scaled[:1]), rank)
            rest = nearest(scaled - up @ down)
            return lambda x: (
                F.linear(nearest(x * factors), rest, linear.bias) + F.linear(F.linear(x * factors, down), up)
            )

        return {name: layer(linear) for name, linear in linears.items()}

    return quantize


VARIANTS: dict[str, Callable[[], Quantize]] = {
    "published-0": lambda: as_published(0),
    "published-32": lambda: as_published(32),
    "rank-0": lambda: by_recipe(0),
    "rank-16": lambda: by_recipe(16),
    "rank-32": lambda: by_recipe(32),
    "rank-64": lambda: by_recipe(64),
    "rank-32-unrotated": lambda: by_recipe(32, rotation=False),
}


@contextmanager
def replaced(parts: Parts, layers: Mapping[str, Layer]) -> Iterator[None]:
    """The denoiser with some of its linear layers computed otherwise."""
    handles = [
        parts.denoiser.get_submodule(name.removesuffix(".weight")).register_forward_hook(
            lambda _, given, output, layer=layer: layer(given[0]).to(output.dtype)
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def quantized(parts: Parts, groups: Sequence[InputGroup], quantize: Quantize) -> dict[str, Layer]:
    """All layers by the names of their weights."""
    layers: dict[str, Layer] = {}
    for group in groups:
        linears = {f"{name}.weight": parts.denoiser.get_submodule(name) for name in group.names}
        layers |= quantize(linears, group)  # type: ignore[arg-type]  # the collector was given linear layers
    return layers


@torch.no_grad()
def ratios(parts: Parts, groups: Sequence[InputGroup], layers: Mapping[str, Layer]) -> dict[str, float]:
    """Signal-to-noise ratio of the output of each kind of layer, the mean over the blocks, in dB, on the last quarter
    of the rows, which nothing was fitted to."""
    found: dict[str, list[float]] = {}
    for group in groups:
        judged = group.inputs[len(group.inputs) * 3 // 4 :]
        for name in group.names:
            linear = parts.denoiser.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            bias = 0.0 if linear.bias is None else linear.bias
            found.setdefault(kind_of(name), []).append(
                snr_db(linear(judged) - bias, layers[f"{name}.weight"](judged) - bias)
            )
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def kind_of(name: str) -> str:
    """Such as `self_attn.q`."""
    return name.removesuffix(".weight").split(".", 2)[2]


def streamed(parts: Parts, prompts: Sequence[str], frames: int) -> Tensor:
    """uint8 [B, frames, 3, H, W]."""
    stream, chunks, made = BatchStream(parts, prompts, shipped_sampling(parts.config), seed=0), [], 0
    while made < frames:
        chunks.append(stream.next_chunk().cpu())
        made += chunks[-1].shape[1]
    return torch.cat(chunks, dim=1)[:, :frames]


def compared(found: Tensor, exact: Tensor) -> dict[str, Any]:
    """Videos beside those of the unquantized model."""
    early = (found[:, :WINDOW].float() - exact[:, :WINDOW].float()).square().flatten(1).mean(dim=1)
    psnr = [10 * math.log10(255**2 / max(float(error), 1e-6)) for error in early]
    late, reference = found[:, -WINDOW:].float(), exact[:, -WINDOW:].float()
    changes = [float((frames[:, 1:] - frames[:, :-1]).abs().mean()) for frames in (late, reference)]
    return {
        "psnr": sum(psnr) / len(psnr),
        "psnr_of_clips": psnr,
        "brightness": float(late.mean() - reference.mean()),
        "change": changes[0],
        "change_of_reference": changes[1],
    }


@torch.no_grad()
def felt(parts: Parts, prompts: Sequence[str], layers: Mapping[str, Layer]) -> dict[str, float]:
    """Relative error of the velocity over the passes of a first chunk with one kind of layer quantized at a time."""

    def velocities(chosen: Mapping[str, Layer]) -> Tensor:
        found: list[Tensor] = []
        handle = parts.denoiser.register_forward_hook(lambda _, __, output: found.append(output))
        with replaced(parts, chosen):
            BatchStream(parts, prompts, shipped_sampling(parts.config), seed=0).next_chunk()
        handle.remove()
        return torch.stack(found)

    exact = velocities({})
    kinds = {kind_of(name): None for name in layers}
    return {
        kind: float(
            (velocities({name: layer for name, layer in layers.items() if kind_of(name) == kind}) - exact).norm()
            / exact.norm()
        )
        for kind in kinds
    }


def study(parts: Parts, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    calibration = read_prompts(calibration_files()[parts.config.calibration.prompts])
    groups = recorded(parts, calibration[: arguments.calibration])
    prompts = [canonical_caption(scene) for scene in held_out_scenes(arguments.count, seed=1)]
    frames = round(arguments.seconds * FRAME_RATE)
    exact = streamed(parts, prompts, frames) if frames else None
    for name in arguments.variants:
        begun = time.monotonic()
        layers = quantized(parts, groups, VARIANTS[name]())
        entry: dict[str, Any] = {"variant": name, "quantize_seconds": time.monotonic() - begun}
        entry["snr_db"] = ratios(parts, groups, layers)
        if exact is not None:
            with replaced(parts, layers):
                entry |= compared(streamed(parts, prompts, frames), exact)
        if arguments.felt:
            entry["felt"] = felt(parts, prompts[:2], layers)
        yield entry


def describe(entry: Mapping[str, Any]) -> str:
    """One variant in a few lines."""
    ratios = entry["snr_db"]
    lines = [f"{entry['variant']}: mean of layers {sum(ratios.values()) / len(ratios):.1f} dB"]
    lines.append("  " + "  ".join(f"{kind} {value:.1f}" for kind, value in ratios.items()))
    if "psnr" in entry:
        worst = min(entry["psnr_of_clips"])
        lines.append(
            f"  first 5 s: PSNR {entry['psnr']:.1f} dB, worst clip {worst:.1f}; last 5 s: brightness "
            f"{entry['brightness']:+.2f}, change {entry['change']:.2f} (reference {entry['change_of_reference']:.2f})"
        )
    if "felt" in entry:
        lines.append("  velocity: " + "  ".join(f"{kind} {value:.1%}" for kind, value in entry["felt"].items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("rtgen/bundled/postcard"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--calibration", type=int, default=8, help="prompts that inputs are recorded from")
    parser.add_argument("--count", type=int, default=4, help="held-out prompts that are streamed")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the streams; 0 leaves them out")
    parser.add_argument("--felt", action="store_true", help="quantize one kind of layer at a time, too")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = load_parts(postcard_config(), arguments.weights, arguments.weights, device)
    entries = []
    for entry in study(parts, arguments):
        print(describe(entry), flush=True)
        entries.append(entry)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
