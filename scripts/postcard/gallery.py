"""One animation of several clips side by side, made by a built package, for the documentation.

python -m scripts.postcard.gallery engines/postcard/cpu/KEY --output docs/media/postcard.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.sink import open_sink
from rtgen.runtime.writers import Frames

PROMPTS = (
    "a red hot air balloon bobbing up and down over a lake at noon under a cloudy sky, still camera",
    "a yellow butterfly circling over an island at noon under a clear sky, camera panning left",
    "a golden airship drifting left over a city at dawn under a clear sky, camera panning right",
    "a white flying saucer circling over a beach at night under a clear sky, still camera",
    "a purple kite bobbing up and down over the desert at noon under a cloudy sky, swaying camera",
    "a green flying saucer hovering over a city at night under a clear sky, camera panning right",
    "a pink butterfly bobbing up and down over a meadow at noon under a clear sky, camera panning left",
    "a red hot air balloon drifting right over the mountains at dawn under a clear sky, still camera",
)


def gallery(pipeline: Pipeline, prompts: tuple[str, ...], *, columns: int, frames: int, seed: int) -> Frames:
    """Clips laid out in rows, [frames, H * rows, W * columns, 3] uint8."""
    clips = [np.concatenate(list(pipeline.stream(prompt, seed=seed, frames=frames))) for prompt in prompts]
    rows = [np.concatenate(clips[start : start + columns], axis=2) for start in range(0, len(clips), columns)]
    return np.concatenate(rows, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with Pipeline.open(arguments.package) as pipeline:
        video = gallery(pipeline, PROMPTS, columns=arguments.columns, frames=arguments.frames, seed=arguments.seed)
        rate = pipeline.manifest.model.frames_per_second
    with open_sink(str(arguments.output), frames_per_second=rate, size=(video.shape[1], video.shape[2])) as sink:
        sink.write(video)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
    for prompt in PROMPTS:
        print(prompt)


if __name__ == "__main__":
    main()
