"""Judge a built package of the bundled model: does a clip show what its prompt asks for?

    python -m scripts.postcard.evaluate --package engines/postcard/cpu/KEY --classifier runs/classifier --count 200

Prompts come from the test split, clips from the runtime, and `scripts.postcard.classifier` reads their attributes back.
It reads fresh renders of the same scenes too: no generator can be expected to score above those.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtgen import Pipeline
from scripts.postcard.classifier import CLIP_FRAMES, load_classifier
from scripts.postcard.grammar import ATTRIBUTES, Scene, canonical_caption, held_out_scenes
from scripts.postcard.render import FRAME_RATE, render

SCHEMA = "postcard.evaluation/1"
SHORTEST = CLIP_FRAMES // FRAME_RATE
"""Seconds that the classifier looks at: the last ones of a longer clip."""


class Generator(Protocol):
    """What makes clips: an `rtgen.Pipeline`."""

    def stream(self, prompt: str, *, seed: int = 0, frames: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Chunks uint8 [F, H, W, 3] of a clip of `frames` frames."""
        ...


class Reader(Protocol):
    """What reads attributes: a `Classifier`."""

    def read(self, video: Tensor) -> Tensor:
        """Class indices int64 [B, 7] of clips uint8 [B, 80, 3, H, W]."""
        ...


@dataclass(frozen=True)
class Judgement:
    """One scene: what was asked for, and what the generated and the rendered clip show."""

    prompt: str
    seed: int
    asked: tuple[int, ...]
    generated: tuple[int, ...]
    rendered: tuple[int, ...]
    generated_flicker: float
    rendered_flicker: float


def generated_clip(pipeline: Generator, prompt: str, *, frames: int, seed: int) -> Tensor:
    """The last 80 frames uint8 [80, 3, H, W] of a generated clip of `frames` frames."""
    kept: list[NDArray[np.uint8]] = []
    for chunk in pipeline.stream(prompt, seed=seed, frames=frames):
        kept.append(chunk)
        while sum(map(len, kept[1:])) >= CLIP_FRAMES:
            del kept[0]
    return torch.from_numpy(np.concatenate(kept)[-CLIP_FRAMES:]).permute(0, 3, 1, 2)


def flicker(clip: Tensor) -> float:
    """Mean absolute difference of consecutive frames of a clip uint8 [T, 3, H, W], in levels of 0..255."""
    levels = clip.float()
    return float((levels[1:] - levels[:-1]).abs().mean())


def judge(pipeline: Generator, reader: Reader, scene: Scene, *, frames: int, seed: int) -> Judgement:
    """Generate and render one scene and read both; the two share the size, and nothing of their randomness."""
    prompt = canonical_caption(scene)
    generated = generated_clip(pipeline, prompt, frames=frames, seed=seed)
    height, width = generated.shape[-2:]
    start = frames / FRAME_RATE - SHORTEST
    rendered = render([scene], frames=CLIP_FRAMES, height=height, width=width, seed=seed, start_time=start)[0]
    read_generated, read_rendered = (
        tuple(int(value) for value in reader.read(clip[None])[0]) for clip in (generated, rendered)
    )
    return Judgement(
        prompt, seed, scene.indices(), read_generated, read_rendered, flicker(generated), flicker(rendered)
    )  # fmt: skip


def judge_all(
    pipeline: Generator, reader: Reader, scenes: Sequence[Scene], *, seconds: float, seed: int
) -> list[Judgement]:
    """`judge` every scene, clip n from seed `seed` + n, and print a line now and then."""
    judgements: list[Judgement] = []
    start = shown = time.monotonic()
    for index, scene in enumerate(scenes):
        judgements.append(judge(pipeline, reader, scene, frames=round(seconds * FRAME_RATE), seed=seed + index))
        now = time.monotonic()
        if now - shown > 10 or index + 1 == len(scenes):
            shown, left = now, (now - start) / (index + 1) * (len(scenes) - index - 1)
            right = summarize(judgements)["mean"]["generated"]
            print(f"{index + 1} of {len(scenes)} clips, {right:.1%} right, {left:.0f} s left", flush=True)
    return judgements


def summarize(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Shares of right answers by attribute, their mean, the share of clips with all seven right, and the flicker."""
    asked = np.array([judgement.asked for judgement in judgements])
    right = {
        kind: np.array([getattr(judgement, kind) for judgement in judgements]) == asked
        for kind in ("generated", "rendered")
    }
    return {
        "attributes": {
            name: {kind: float(hits[:, column].mean()) for kind, hits in right.items()}
            for column, name in enumerate(ATTRIBUTES)
        },
        "mean": {kind: float(hits.mean()) for kind, hits in right.items()},
        "all_seven": {kind: float(hits.all(axis=1).mean()) for kind, hits in right.items()},
        "flicker": {
            kind: float(np.mean([getattr(judgement, f"{kind}_flicker") for judgement in judgements])) for kind in right
        },
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as lines of text for people."""
    rows = [*summary["attributes"].items(), ("mean", summary["mean"]), ("all seven", summary["all_seven"])]
    lines = [f"{'attribute':<12}{'generated':>11}{'rendered':>11}"]
    lines += [f"{name:<12}{row['generated']:>11.1%}{row['rendered']:>11.1%}" for name, row in rows]
    motion = summary["flicker"]
    lines.append(f"{'flicker':<12}{motion['generated']:>11.2f}{motion['rendered']:>11.2f}")
    return "\n".join(lines)


def named(judgement: Judgement) -> dict[str, Any]:
    """A judgement for the report: values by name instead of class indices."""
    kinds = {kind: asdict(Scene.from_indices(getattr(judgement, kind))) for kind in ("asked", "generated", "rendered")}
    return {**asdict(judgement), **kinds}


def write_report(path: Path, summary: dict[str, Any], judgements: Sequence[Judgement], about: dict[str, Any]) -> None:
    """Write the JSON file whole or not at all."""
    report = {"schema": SCHEMA, **about, **summary, "clips": [named(judgement) for judgement in judgements]}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder that `rtgen build` made")
    parser.add_argument("--classifier", type=Path, required=True, help="folder that scripts.postcard.classifier wrote")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float(SHORTEST), help=f"of a clip; its last {SHORTEST} count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path, help="file to write, with the answers for every clip")
    arguments = parser.parse_args()
    if arguments.seconds < SHORTEST or arguments.count < 1:
        parser.error(f"--seconds must be at least {SHORTEST} and --count at least 1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reader = load_classifier(arguments.classifier, device)
    scenes = held_out_scenes(arguments.count, seed=arguments.seed)
    with Pipeline.open(arguments.package, arguments.backend) as pipeline:
        if pipeline.manifest.model.frames_per_second != FRAME_RATE:
            parser.error(f"the classifier reads {FRAME_RATE} frames per second: this package makes another rate")
        about = {name: getattr(arguments, name) for name in ("count", "seconds", "seed")}
        about |= {"package": pipeline.manifest.key, "backend": pipeline.backend_name, "device": pipeline.device}
        judgements = judge_all(pipeline, reader, scenes, seconds=arguments.seconds, seed=arguments.seed)
    summary = summarize(judgements)
    print(table(summary))
    if arguments.json:
        write_report(arguments.json, summary, judgements, about)


if __name__ == "__main__":
    main()
