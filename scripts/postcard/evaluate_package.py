"""Judge a built package of the bundled model: does a clip show what its prompt asks for?

    python -m scripts.postcard.evaluate_package --package engines/postcard/cpu/KEY

Clips come from the runtime that users run, one after the other, prompts from the test split, and
`scripts.postcard.classifier` reads their attributes back. It reads fresh renders of the same scenes too: no generator
can be expected to score above those.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rtgen import Pipeline
from scripts.postcard.classifier import CLIP_FRAMES, Classifier, load_classifier
from scripts.postcard.evaluate import write_report
from scripts.postcard.grammar import Scene, canonical_caption, held_out_scenes
from scripts.postcard.judging import Reading, accuracy, join_readings, misread, read_clips
from scripts.postcard.recording import Recording, record
from scripts.postcard.render import FRAME_RATE, render
from scripts.postcard.results import accuracy_table
from scripts.postcard.training import KEPT

SCHEMA = "postcard.package-evaluation/1"


class Generator(Protocol):
    """What makes clips: an `rtgen.Pipeline`."""

    def stream(self, prompt: str, *, seed: int = 0, frames: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Chunks uint8 [F, H, W, 3] of a clip of `frames` frames."""
        ...


def generated(pipeline: Generator, prompt: str, *, frames: int, seed: int) -> Recording:
    """One stream of the runtime."""
    chunks = pipeline.stream(prompt, seed=seed, frames=frames)
    return record((torch.from_numpy(chunk).permute(0, 3, 1, 2)[None] for chunk in chunks), frames)


def rendered(scene: Scene, like: Recording, *, seconds: float, seed: int) -> Recording:
    """The last five seconds of a render of the same size and length."""
    height, width = like.late.shape[-2:]
    start = seconds - CLIP_FRAMES / FRAME_RATE
    clip = render([scene], frames=CLIP_FRAMES, height=height, width=width, seed=seed, start_time=start)
    return record([clip], CLIP_FRAMES)


def judge(
    pipeline: Generator, classifier: Classifier, scenes: Sequence[Scene], *, seconds: float, seed: int
) -> dict[str, Any]:
    """Generate and render every scene, clip n from seed `seed` + n, and judge the last five seconds of each."""
    readings: dict[str, list[Reading]] = {"generated": [], "rendered": []}
    flicker: dict[str, list[float]] = {"generated": [], "rendered": []}
    begun = shown = time.monotonic()
    for index, scene in enumerate(scenes):
        own = generated(pipeline, canonical_caption(scene), frames=round(seconds * FRAME_RATE), seed=seed + index)
        pair = {"generated": own, "rendered": rendered(scene, own, seconds=seconds, seed=seed + index)}
        for kind, recording in pair.items():
            readings[kind].append(read_clips(classifier, recording.late))
            flicker[kind].append(recording.flicker("late"))
        now = time.monotonic()
        if now - shown > 10 or index + 1 == len(scenes):
            shown, left = now, (now - begun) / (index + 1) * (len(scenes) - index - 1)
            right = accuracy(join_readings(readings["generated"]).answers, scenes[: index + 1])["mean"]
            print(f"{index + 1} of {len(scenes)} clips, {right:.1%} right, {left:.0f} s left", flush=True)
    joined = {kind: join_readings(parts) for kind, parts in readings.items()}
    wrong = {kind: misread(reading.answers, scenes) for kind, reading in joined.items()}
    return {
        **{
            kind: {**accuracy(reading.answers, scenes), "flicker": float(np.mean(flicker[kind]))}
            for kind, reading in joined.items()
        },
        "clips": [
            {"prompt": canonical_caption(scene), "misread": {kind: wrong[kind][index] for kind in wrong}}
            for index, scene in enumerate(scenes)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder that `rtgen build` made")
    parser.add_argument("--classifier", type=Path, default=KEPT, help="folder that scripts.postcard.classifier wrote")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a clip; its last 5 count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path, help="file to write, with what was read wrong in every clip")
    arguments = parser.parse_args()
    if arguments.seconds * FRAME_RATE < CLIP_FRAMES or arguments.count < 1:
        parser.error("--seconds must be at least 5 and --count at least 1")
    classifier = load_classifier(arguments.classifier, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    scenes = held_out_scenes(arguments.count, seed=arguments.seed)
    with Pipeline.open(arguments.package, arguments.backend) as pipeline:
        if pipeline.manifest.model.frames_per_second != FRAME_RATE:
            parser.error(f"the classifier reads {FRAME_RATE} frames per second: this package makes another rate")
        about = {name: getattr(arguments, name) for name in ("count", "seconds", "seed")}
        about |= {"package": pipeline.manifest.key, "backend": pipeline.backend_name, "device": pipeline.device}
        judged = judge(pipeline, classifier, scenes, seconds=arguments.seconds, seed=arguments.seed)
    kinds = ("generated", "rendered")
    print(accuracy_table({kind: judged[kind] for kind in kinds}))
    print(", ".join(f"flicker of {kind} clips {judged[kind]['flicker']:.2f}" for kind in kinds))
    if arguments.json:
        write_report(arguments.json, {"schema": SCHEMA, **about, **judged})


if __name__ == "__main__":
    main()
