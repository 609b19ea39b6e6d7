"""A process that builds one entry of a store, for the tests of concurrency and sudden death.

Usage: builder_process.py ROOT KEY SECONDS. Writes ``building`` when its own build starts and, at the end, the path.
"""

import os
import sys
import time
from pathlib import Path

from rtgen.store.store import Store

KIND = "onnx"
FILES = 8


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def build(folder: Path, seconds: float) -> None:
    say("building")
    for number in range(FILES):
        # Two halves, so that a process that dies leaves a file of the wrong size too.
        with (folder / f"part-{number}.bin").open("wb") as file:
            file.write(bytes([number]) * 20_000)
            file.flush()
            time.sleep(seconds / FILES)
            file.write(bytes([number]) * 20_000)


def main() -> None:
    root, key, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

    def make(folder: Path) -> None:
        with (root / "builds.log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        build(folder, seconds)

    say(str(Store(root).stage(KIND, key, make)))


if __name__ == "__main__":
    main()
