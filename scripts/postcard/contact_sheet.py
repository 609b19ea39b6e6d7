"""Draw a sheet of rendered postcards, which is what training sees, and print their captions in the same order.

python -m scripts.postcard.contact_sheet --out docs/media/postcard-renders.webp
"""

from __future__ import annotations

import argparse
import random
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from rtgen.runtime.sink import open_sink
from scripts.postcard.grammar import caption, random_scene
from scripts.postcard.render import render

_STRIP_FRAMES = 8
_GAP = 2


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, .png or the much smaller .webp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=6, help=f"pictures per row (--strip: always {_STRIP_FRAMES})")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--strip", action="store_true", help="one clip per row, over five seconds")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    count = options.rows if options.strip else options.rows * options.columns
    scenes = [random_scene(rng) for _ in range(count)]
    frames = 81 if options.strip else 1
    start = 0.0 if options.strip else 2.5
    size = {"height": options.height, "width": options.width}
    video = render(scenes, frames=frames, seed=options.seed, start_time=start, **size)
    pictures = video[:, :: 81 // _STRIP_FRAMES][:, :_STRIP_FRAMES].flatten(0, 1)
    write_picture(options.out, tile(pictures, _STRIP_FRAMES if options.strip else options.columns))
    for scene in scenes:
        print(caption(scene, rng))


def tile(pictures: Tensor, columns: int) -> Tensor:
    """Lay uint8 [N, 3, H, W] out in rows of `columns`: uint8 [3, Y, X]."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * (height + _GAP), columns * (width + _GAP)), 255, dtype=torch.uint8)
    for position, picture in enumerate(pictures):
        y, x = position // columns * (height + _GAP), position % columns * (width + _GAP)
        sheet[:, y : y + height, x : x + width] = picture
    return sheet


def write_picture(path: Path, image: Tensor) -> None:
    """Write uint8 [3, H, W] as a PNG or WebP file, by the name's ending. Raises ValueError for any other."""
    match path.suffix:
        case ".png":
            write_png(path, image)
        case ".webp":  # a video of one frame; height and width must be even
            _, height, width = image.shape
            with open_sink(str(path), frames_per_second=1, size=(height, width)) as sink:
                sink.write(image.permute(1, 2, 0)[None].cpu().numpy())
        case other:
            raise ValueError(f"pictures are .png or .webp files, not {other or 'nameless'}")


def write_png(path: Path, image: Tensor) -> None:
    """Write uint8 [3, H, W] as a PNG file."""
    _, height, width = image.shape
    pixels = image.permute(1, 2, 0).reshape(height, -1).cpu()
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.numpy().tobytes(), 6)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


if __name__ == "__main__":
    main()
