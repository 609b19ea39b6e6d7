"""Make the wheel, with the exported graphs of the bundled model in it.

Whoever installs that wheel builds and runs the bundled model without torch or ONNX: the graphs are found where a build
would put them (``rtgen/bundled/stages``). They are exported here, from a copy of the sources, so the source tree stays
as it is and the keys are those that the installed sources lead to.

    python -m scripts.make_wheel [--output dist]

Needs ``rtgen[compile,dev]`` and hatchling.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "configs", "plugins", "rtgen")
"""What the wheel is made of; no .gitignore, since the build leaves out what that names."""

LEFT_OUT = ("__pycache__", "*.pyc", "classifier.onnx")
MODEL = "postcard"
CARRIED = {
    "fp16": "rtx4080-laptop",
    "int4": "rtx4080-laptop",
    "nvfp4": "rtx5090",
    "fp32": "cpu",
    "int8-cpu": "cpu",
}
"""Recipes whose graphs are carried, with what they quantized, and a GPU of each; other GPUs share them. They are the
defaults of all targets but h100 and h200, which need an extra anyway, and what quantizes nothing."""


def make_wheel(output: Path) -> Path:
    """Write the wheel into the folder ``output`` and return its path. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="rtgen-wheel-") as folder:
        tree, store, made = (Path(folder) / name for name in ("tree", "store", "made"))
        copy_sources(tree)
        _run_in_copy(tree, str(Path(__file__).resolve()), "--stages-into", str(store))
        _run_in_copy(tree, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(tree))
        (wheel,) = made.glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(wheel, output))


def copy_sources(tree: Path) -> None:
    """Copy what the wheel is made of. Stages and a classifier in the source tree are left out."""
    tree.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        elif source.is_file():
            shutil.copyfile(source, tree / name)
    shutil.rmtree(tree / "rtgen" / "bundled" / "stages", ignore_errors=True)


def bundle_stages(store: Path) -> None:
    """Export and quantize the bundled model in ``store``, and copy the graphs into the imported package, a copy.

    Quantized weights lie beside the graphs.
    """
    from rtgen.build.request import BuildRequest
    from rtgen.build.toolchain import RECORD, bundled_stages, installed_toolchain
    from rtgen.build.walk import export
    from rtgen.progress import SilentProgress

    bundled = bundled_stages()
    if bundled.is_relative_to(ROOT):
        raise RuntimeError(f"the stages would be written into the source tree: {bundled}")
    for recipe, gpu in CARRIED.items():
        graphs = export(BuildRequest(gpu, MODEL, recipe, store=store), SilentProgress())
        shutil.copytree(graphs, bundled / graphs.parent.name / graphs.name)
    versions = json.dumps(installed_toolchain(with_modelopt=True), indent=1)
    (bundled / RECORD).write_text(versions + "\n", encoding="utf-8")


def _run_in_copy(tree: Path, *arguments: str) -> None:
    """Run Python with the copy in place of the sources, and without the user's own configs."""
    environment = {name: value for name, value in os.environ.items() if name != "RTGEN_CONFIGS"}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, *arguments], check=True, cwd=tree.parent, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the wheel with the bundled model's graphs.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for the wheel")
    parser.add_argument("--stages-into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stages_into is not None:
        bundle_stages(options.stages_into)
    else:
        print(make_wheel(options.output))


if __name__ == "__main__":
    main()
