"""Draw what held-out prompts become, a strip of frames each, and list the strips under their prompts.

    python -m scripts.postcard.prompt_sheet --autoencoder rtgen/bundled/postcard --student rtgen/bundled/postcard \\
        --out docs/media/postcard-prompts --page docs/postcard-results.md

The prompts are the first of those that `scripts.postcard.evaluate` asks for, taken as they come.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scripts.postcard.contact_sheet import tile, write_picture
from scripts.postcard.grammar import canonical_caption, held_out_scenes
from scripts.postcard.render import FRAME_RATE
from scripts.postcard.results import fill
from scripts.postcard.rollout import BatchStream, load_parts, shipped_sampling
from scripts.postcard.training import postcard_config

TIMES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 15.0, 29.9)
"""Seconds at which a strip shows its stream."""


def frames_at(stream: BatchStream, times: Sequence[float]) -> Tensor:
    """The frames [B, T, 3, H, W] uint8 of a new stream at ascending `times`, in seconds."""
    wanted, made = [round(time * FRAME_RATE) for time in times], 0
    found: list[Tensor] = []
    while len(found) < len(wanted):
        chunk = stream.next_chunk().cpu()
        while len(found) < len(wanted) and wanted[len(found)] < made + chunk.shape[1]:
            found.append(chunk[:, wanted[len(found)] - made])
        made += chunk.shape[1]
    return torch.stack(found, dim=1)


def listing(prompts: Sequence[str], pictures: Sequence[Path], page: Path) -> str:
    """Each prompt with its strip under it, in markdown, as seen from `page`."""
    links = [Path(os.path.relpath(picture, page.parent)).as_posix() for picture in pictures]
    return "\n\n".join(
        f"{number}. {prompt}\n\n   ![{prompt}]({link})"
        for number, (prompt, link) in enumerate(zip(prompts, links, strict=True), 1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder with an autoencoder, or its decoder")
    parser.add_argument("--student", type=Path, required=True, help="folder with denoiser and text encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the strips, 1.webp, 2.webp …")
    parser.add_argument("--page", type=Path, help="markdown page to list them in, between its markers")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--times", type=float, nargs="+", default=TIMES, help="seconds, ascending")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config, device = postcard_config(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = load_parts(config, arguments.autoencoder, arguments.student, device)
    prompts = [canonical_caption(scene) for scene in held_out_scenes(arguments.count, seed=arguments.seed)]
    stream = BatchStream(parts, prompts, shipped_sampling(config), seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = [arguments.out / f"{number}.webp" for number in range(1, len(prompts) + 1)]
    for picture, frames in zip(pictures, frames_at(stream, arguments.times), strict=True):
        write_picture(picture, tile(frames, len(frames)))
    if arguments.page:
        page = arguments.page.read_text(encoding="utf-8")
        found = {"prompts": listing(prompts, pictures, arguments.page)}
        arguments.page.write_text(fill(page, "pictures", found), encoding="utf-8")
    for number, prompt in enumerate(prompts, 1):
        print(number, prompt)


if __name__ == "__main__":
    main()
