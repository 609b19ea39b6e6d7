"""Calibration prompts from a text file."""

from pathlib import Path
from typing import Final

from rtgen.errors import PromptError
from rtgen.runtime.prompt import MAXIMUM_CHARACTERS

MAXIMUM_BYTES: Final = 1 << 20
MAXIMUM_PROMPTS: Final = 128
"""Each is a stream that the model has to make: hours for a large model on a processor."""

_HINT: Final = "one prompt a line, UTF-8; lines that start with # are comments"


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file: a line each, without blank lines, comments (``#``) and repetitions.

    Raises PromptError for a file that cannot be read, is larger than 1 MiB, is not UTF-8 text, or holds no prompt, one
    that is too long, or more than 128.
    """
    text = _read(path)
    stripped = (" ".join(line.split()) for line in text.splitlines())
    prompts = tuple(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
    if not prompts:
        raise PromptError(f"{path} holds no prompt", hint=_HINT)
    if len(prompts) > MAXIMUM_PROMPTS:
        raise PromptError(f"{path} holds {len(prompts)} prompts, more than {MAXIMUM_PROMPTS}", hint="16 varied ones do")
    longest = max(prompts, key=len)
    if len(longest) > MAXIMUM_CHARACTERS:
        raise PromptError(f"{path} holds a prompt of {len(longest):,} characters", hint=_HINT)
    return prompts


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        reason = "is a folder" if path.is_dir() else error.strerror or str(error)
        raise PromptError(f"calibration prompts cannot be read: {path}: {reason}", hint=_HINT) from error
    if len(content) > MAXIMUM_BYTES:
        raise PromptError(f"{path} is larger than 1 MiB", hint=_HINT)
    try:
        text = content.decode("utf-8-sig")  # editors on Windows put a byte order mark first
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text (byte {error.start})", hint=_HINT) from error
    if "\0" in text:
        raise PromptError(f"{path} is not a text file", hint=_HINT)
    return text
