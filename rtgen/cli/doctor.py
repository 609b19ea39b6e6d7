"""``rtgen doctor``."""

import dataclasses
from functools import partial
from pathlib import Path

from rtgen.cli.group import command
from rtgen.cli.options import store_option
from rtgen.cli.output import Output, Result
from rtgen.cli.table import columns
from rtgen.errors import MissingDependencyError


@command("doctor")
@store_option()
def doctor(output: Output, store: Path | None) -> Result:
    """Show what works on this machine, and how to fix what does not.

    Exit code 0 when a video can be made here, on a GPU or on the processor, and 3 when not.
    """
    from rtgen.cli import doctor_checks

    with output.progress() as progress:
        progress.update("looking at this machine", None)
        rows = doctor_checks.run_checks([*doctor_checks.CHECKS, partial(doctor_checks.store, store)])
        progress.update("looking at this machine", 1.0)
    usable = doctor_checks.can_run(rows)
    fixes = [f"{row.area}: {row.fix}" for row in rows if row.fix]
    error = None
    if not usable:
        first = next((row.fix for row in rows if row.fix and row.area in ("ONNX Runtime", "Video")), None)
        error = MissingDependencyError("rtgen cannot make a video on this machine", hint=first)
    table = columns(["area", "state", "detail"], [[row.area, row.state, row.detail] for row in rows])
    return Result(
        {"usable": usable, "rows": [dataclasses.asdict(row) for row in rows]},
        lines=[*table, *(["", "To fix:", *(f"  {fix}" for fix in fixes)] if fixes else [])],
        quiet=[f"{row.area}: {row.state}" for row in rows if row.fix],
        error=error,
    )
