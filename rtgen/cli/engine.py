"""``rtgen engine ls|show|verify|rm``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rtgen.cli.build import plan_data, plan_lines
from rtgen.cli.group import Group, command
from rtgen.cli.options import complete_package, store_option
from rtgen.cli.output import Output, Result
from rtgen.cli.packages import KEY_SHOWN, find_package, find_stored, package_data
from rtgen.cli.table import bytes_text, columns, pairs, size_text
from rtgen.errors import PackageInvalidError

engine = Group("engine", help="List, show, verify and remove engine packages.")


@command("ls")
@store_option()
def ls(output: Output, store: Path | None) -> Result:
    """List the packages in the store."""
    from rtgen.store.store import Store

    opened = Store(store)
    packages = opened.packages()
    rows = [
        [p.key[:KEY_SHOWN], p.model, p.gpu, bytes_text(p.size), time.strftime("%Y-%m-%d", time.localtime(p.mtime)),
         p.problem or "ok"]
        for p in packages
    ]  # fmt: skip
    return Result(
        {"store": str(opened.root), "packages": [package_data(package) for package in packages]},
        lines=columns(["key", "model", "gpu", "size", "used", "state"], rows) if rows else (),
        quiet=[package.key for package in packages],
        summary=() if rows else [f"no packages in {opened.root}; rtgen build makes one"],
    )


@command("show")
@click.argument("name", shell_complete=complete_package)
@store_option()
def show(output: Output, name: str, store: Path | None) -> Result:
    """Show what a package is: its target, sizes, memory plan and files.

    NAME is a folder, the start of a key, a GPU, or MODEL/GPU.
    """
    from rtgen.engine.package import read_manifest
    from rtgen.store.store import Store

    path = find_package(Store(store), name)
    manifest = read_manifest(path)
    profiles = [f"{size_text(p.min)} to {size_text(p.max)}, best at {size_text(p.opt)}" for p in manifest.profiles]
    about = {
        "package": str(path),
        "key": manifest.key,
        "model": manifest.model.name,
        "gpu": manifest.target.gpu,
        "compute capability": manifest.target.compute_capability or "-",
        "recipe": manifest.recipe,
        "compiler": f"{manifest.compiler.name} {manifest.compiler.version}",
        "rtgen": manifest.rtgen,
        "sizes": "; ".join(profiles),
        "default size": size_text(manifest.model.default_size),
    }
    files = {file: bytes_text(entry.size) for file, entry in manifest.files.items()}
    lines = [*pairs(about), *plan_lines(plan_data(manifest.memory_plan)), "files", *pairs(files, indent="  ")]
    data = {"package": str(path), "manifest": manifest.model_dump(mode="json")}
    return Result(data, lines=lines, quiet=[str(path)])


@command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_package)
@store_option()
def verify(output: Output, names: Sequence[str], store: Path | None) -> Result:
    """Check the files of packages against their manifests; all packages of the store by default."""
    from rtgen.store.store import Store

    opened = Store(store)
    paths = [find_package(opened, name) for name in names] or [package.path for package in opened.packages()]
    with output.progress() as progress:
        checked = []
        for index, path in enumerate(paths):
            progress.update("verify", index / len(paths), path.name[:KEY_SHOWN])
            checked.append(_checked(path))
        progress.update("verify", 1.0)
    broken = [row for row in checked if not row["valid"]]
    error = None
    if broken:
        hint = f"rtgen engine rm {Path(broken[0]['package']).name[:KEY_SHOWN]}, then build it again"
        error = PackageInvalidError(f"{len(broken)} of {len(checked)} packages are not valid", hint=hint)
    return Result(
        {"packages": checked},
        lines=columns(["package", "state"], [[row["package"], row["problem"] or "ok"] for row in checked]),
        quiet=[row["package"] for row in broken],
        error=error,
    )


@command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_package)
@store_option()
def rm(output: Output, names: Sequence[str], store: Path | None) -> Result:
    """Remove packages from the store.

    NAME is the start of a key, a GPU, MODEL/GPU, or a folder of the store.
    """
    from rtgen.store.store import Store

    opened = Store(store)
    found = {package.path: package for package in (find_stored(opened, name) for name in names)}
    for package in found.values():
        opened.remove(package)
    paths = [str(path) for path in found]
    freed = sum(package.size for package in found.values())
    return Result({"removed": paths, "freed": freed}, lines=paths, quiet=paths, summary=[f"freed {bytes_text(freed)}"])


def _checked(path: Path) -> dict[str, Any]:
    from rtgen.engine.package import verify as verify_package

    try:
        verify_package(path)
    except PackageInvalidError as error:
        return {"package": str(path), "valid": False, "problem": error.message.removeprefix(f"{path}: ")}
    return {"package": str(path), "valid": True, "problem": None}


for _command in (ls, show, verify, rm):
    engine.add_command(_command)
