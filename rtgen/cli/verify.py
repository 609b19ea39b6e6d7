"""``rtgen verify``."""

import math
from pathlib import Path

import click

from rtgen.cli.group import command
from rtgen.cli.options import calibration_option, complete_package, store_option, weights_option
from rtgen.cli.output import Output, Result
from rtgen.cli.packages import find_package
from rtgen.cli.table import columns
from rtgen.errors import RtgenError


@command("verify")
@click.argument("name", metavar="PACKAGE", shell_complete=complete_package)
@weights_option()
@calibration_option()
@store_option()
def verify(
    output: Output, name: str, weights: Path | None, calibration_prompts: Path | None, store: Path | None
) -> Result:
    """Compare what a package computes with ONNX Runtime on the processor.

    PACKAGE is a folder, the start of a key, a GPU, or MODEL/GPU. For the files' hashes, see 'rtgen engine verify'.
    """
    from rtgen.build.verify import compare_with_onnxruntime
    from rtgen.store.store import Store

    path = find_package(Store(store), name)
    with output.progress() as progress:
        report = compare_with_onnxruntime(
            path, progress, weights=weights, calibration_prompts=calibration_prompts, store=store
        )
    rows = [
        [row.component, row.tensor, f"{row.max_abs:.3g}", f"{row.max_rel:.3g}", "ok" if row.passed else "differs"]
        for row in report.rows
    ]
    failed = [row for row in report.rows if not row.passed]
    error = None
    if failed:
        what = f"{failed[0].component} {failed[0].tensor}"
        error = RtgenError(
            f"{len(failed)} of {len(rows)} tensors differ from ONNX Runtime's, first {what}",
            hint="rtgen engine verify checks the files; a newer driver or another --recipe may help",
        )
    data = [
        {
            "component": row.component,
            "tensor": row.tensor,
            "max_abs": _finite(row.max_abs),
            "max_rel": _finite(row.max_rel),
            "passed": row.passed,
        }
        for row in report.rows
    ]
    return Result(
        {"package": str(path), "passed": not failed, "rows": data},
        lines=columns(["component", "tensor", "max abs", "max rel", "state"], rows),
        quiet=[f"{row.component} {row.tensor}" for row in failed],
        error=error,
    )


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
