"""A bench's results in files: JSON with where they come from, and a chart beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rtgen.bench.chart import ratios
from rtgen.bench.provenance import provenance
from rtgen.bench.result import Measurement
from rtgen.errors import OutputError

if TYPE_CHECKING:
    from rtgen.bench.computed import ComputedLaunch

SCHEMA: Final = "rtgen.bench/1"


def write_report(
    file: Path,
    command: str,
    results: Sequence[Measurement],
    launches: Sequence[ComputedLaunch] = (),
    details: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``file`` and, where there is something to draw, an SVG of the same name; which files were written.

    ``details``: more for the JSON. Raises OutputError.
    """
    content = {
        "schema_version": SCHEMA,
        "command": command,
        **provenance(),
        "results": [asdict(result) for result in results],
        "launches": [launch_fields(launch) for launch in launches],
        **(details or {}),
    }
    chart = ratios(results, f"{command}: times better than the baseline")
    texts = {file: json.dumps(content, indent=1) + "\n"} | ({file.with_suffix(".svg"): chart} if chart else {})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}", hint="--report takes a file's path") from error
    return list(texts)


def launch_fields(computed: ComputedLaunch) -> Mapping[str, Any]:
    """A launch as JSON has it."""
    launch = computed.launch
    return {
        "gpu": computed.gpu,
        "case": computed.case,
        "kernel": launch.entry,
        "cubin": launch.source.name,
        "blocks": launch.blocks,
        "threads": launch.threads,
        "registers": computed.resources.registers,
        "spilled_bytes": computed.resources.spill_stores + computed.resources.spill_loads,
        "shared_bytes": computed.shared,
        "blocks_a_multiprocessor": computed.occupancy.blocks,
        "occupancy": computed.occupancy.share,
        "limited_by": computed.occupancy.limit,
        "waves": computed.waves,
        "instructions": None if computed.mix is None else dict(computed.mix),
    }
