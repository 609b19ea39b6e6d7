"""Where ``rtgen run`` writes, checked before anything slow starts."""

import itertools
import re
from pathlib import Path

from rtgen.errors import OutputError, UsageError

SUFFIXES = (".mp4", ".mkv", ".webm", ".gif", ".webp")
"""What rtgen.runtime.sink writes; repeated here, since its import is slow."""

STANDARD_OUTPUT = "-"
SLUG_LENGTH = 40


def default_destination(prompt: str, seed: int, folder: Path) -> str:
    """A file name from the prompt's first words and the seed that is free in ``folder``: ``a-red-boat-7.mp4``."""
    stem = f"{slug(prompt) or 'video'}-{seed}"
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(f"{name}.mp4" for name in candidates if not (folder / f"{name}.mp4").exists())


def slug(prompt: str) -> str:
    """The prompt's first words in lower case, joined by hyphens; ASCII, since file names travel."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    text = ""
    for word in words:
        longer = f"{text}-{word}" if text else word[:SLUG_LENGTH]
        if len(longer) > SLUG_LENGTH:
            break
        text = longer
    return text


def check_destination(destination: str) -> None:
    """Refuse an output that no encoder serves, or whose folder is missing.

    Allowed are a file with one of ``SUFFIXES``, a folder for PNG files (with a trailing slash, or one that exists) and
    ``-``. Raises UsageError or OutputError.
    """
    if destination == STANDARD_OUTPUT:
        return
    path = Path(destination)
    is_folder = destination.endswith(("/", "\\", ".png-folder")) or path.is_dir()
    if not is_folder and path.suffix.lower() not in SUFFIXES:
        problem = (
            f"'{path.suffix}' is not a video format rtgen writes" if path.suffix else f"'{destination}' has no suffix"
        )
        choices = ", ".join(SUFFIXES)
        raise UsageError(
            problem, hint=f"end --output in {choices}, or in / for a folder of PNG images, or use - for standard output"
        )
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder '{path.parent}'", hint="make it first, or choose another --output")
