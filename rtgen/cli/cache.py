"""``rtgen cache key|dir|size|prune``."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from rtgen.cli.disk import free_space
from rtgen.cli.group import Group, command
from rtgen.cli.options import build_options, resolve_gpu, store_option
from rtgen.cli.output import Output, Result
from rtgen.cli.table import bytes_text, columns, pairs
from rtgen.errors import UsageError

cache = Group("cache", help="Key, place, size and pruning of the store.")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes from a size such as ``20GiB`` or ``500MB``. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper(), re.ASCII)
    if match is None:
        raise UsageError(f"'{text}' is not a size in bytes", hint="such as --max-size 20GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _to_bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_bytes(value)


@command("key")
@build_options()
def key(
    output: Output,
    gpu: str,
    model: str,
    recipe: str | None,
    sizes: Sequence[tuple[int, int]],
    decoder: str | None,
    kv_bits: int | None,
    backend: str | None,
    calibration_prompts: Path | None,
    weights: Path | None,
    store: Path | None,
) -> Result:
    """Print the key of the package that 'rtgen build' with the same options makes.

    It changes when, and only when, anything changes that could change the package: use it as a CI cache key.
    """
    from rtgen.build.request import BuildRequest
    from rtgen.build.walk import package_key

    with output.progress() as progress:
        name = resolve_gpu(gpu, progress)
    request = BuildRequest(
        name, model, recipe, tuple(sizes), weights, store, False, decoder, calibration_prompts, kv_bits, backend
    )
    value = package_key(request)
    return Result({"key": value, "gpu": name, "model": model}, lines=[value], quiet=[value])


@command("dir")
@store_option()
def directory(output: Output, store: Path | None) -> Result:
    """Print where the store is."""
    from rtgen.store.store import Store

    root = str(Store(store).root)
    return Result({"dir": root}, lines=[root], quiet=[root])


@command("size")
@store_option()
def size(output: Output, store: Path | None) -> Result:
    """Show how much disk the store takes."""
    from rtgen.store.store import Store

    opened = Store(store)
    total = opened.size()
    packages = sum(package.size for package in opened.packages())
    stages = sum(stage.size for stage in opened.stages())
    counts = {
        "packages": packages,
        "stages": stages,
        "unfinished": max(total - packages - stages, 0),
        "total": total,
        "free": free_space(opened.root),
    }
    lines = pairs({name: bytes_text(count) for name, count in counts.items()})
    return Result({"dir": str(opened.root), **counts}, lines=lines, quiet=[str(total)])


@command("prune")
@click.option("--older-than", metavar="DAYS", type=click.FloatRange(min=0), help="Remove what was not used for DAYS.")
@click.option(
    "--keep", metavar="N", type=click.IntRange(min=0), help="Keep the N last used packages of a model and GPU."
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=_to_bytes,
    help="Remove the longest unused until the store fits, such as 20GiB.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@store_option()
def prune(
    output: Output, older_than: float | None, keep: int | None, max_size: int | None, dry_run: bool, store: Path | None
) -> Result:
    """Remove leftovers of killed builds and broken entries, and what is over the limits given."""
    from rtgen.store.store import Store

    report = Store(store).prune(older_than, keep, max_size, dry_run)
    removed = [{"path": str(item.path), "size": item.size, "reason": item.reason} for item in report.removed]
    rows = [[bytes_text(item.size), item.reason, str(item.path)] for item in report.removed]
    verb = "would free" if dry_run else "freed"
    data = {
        "removed": removed,
        "in_use": [str(path) for path in report.in_use],
        "freed": report.freed,
        "remaining": report.remaining,
        "dry_run": dry_run,
    }
    busy = [f"in use, left alone: {path}" for path in report.in_use]
    return Result(
        data,
        lines=columns(["size", "reason", "path"], rows) if rows else (),
        quiet=[str(item.path) for item in report.removed],
        summary=[*busy, f"{verb} {bytes_text(report.freed)}; {bytes_text(report.remaining)} remain"],
    )


for _command in (key, directory, size, prune):
    cache.add_command(_command)
