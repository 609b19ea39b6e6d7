"""Bring what docs/estimate.md shows of ``rtgen estimate`` up to date, after a change of configs or counts.

    python -m scripts.estimate_page

Text between the figures is not touched: read it again.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

from rtgen.cli.main import run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "estimate.md"
SHOWN = re.compile(r"(```sh\nrtgen (estimate [^\n]*)\n```\n\n```text\n)(?:.*?)(```)", re.S)
TABLE = re.compile(r"^\| figure \| GPU .*?(?=\n\n)", re.M | re.S)


def printed(line: str) -> str:
    """What a command writes to stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        code = run(shlex.split(line))
    assert code == 0, f"rtgen {line} failed"
    return out.getvalue()


def refreshed(text: str) -> str:
    """The page with every shown output, and the table of published figures, made anew."""
    text = SHOWN.sub(lambda match: match[1] + printed(match[2]) + match[3], text)
    return TABLE.sub(lambda match: printed("estimate --validate").rstrip("\n"), text, count=1)


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
