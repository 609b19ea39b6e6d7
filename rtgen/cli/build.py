"""``rtgen build``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtgen.cli.group import command
from rtgen.cli.options import build_options, resolve_gpu
from rtgen.cli.output import Output, Result
from rtgen.cli.table import bytes_text, pairs

if TYPE_CHECKING:
    from rtgen.build.walk import BuildOutcome
    from rtgen.engine.manifest import MemoryPlan


@command("build")
@build_options(gpus=True)
@click.option("--force", is_flag=True, help="Build again even if the store has the package.")
def build(
    output: Output,
    gpu: Sequence[str],
    model: str,
    recipe: str | None,
    sizes: Sequence[tuple[int, int]],
    decoder: str | None,
    kv_bits: int | None,
    backend: str | None,
    calibration_prompts: Path | None,
    weights: Path | None,
    store: Path | None,
    force: bool,
) -> Result:
    """Compile a model into an engine package for a GPU.

    The GPU need not be in this machine. Several --gpu are built one after another; stages that they share are done
    once.

    \b
    rtgen build                               for this machine's GPU, or its processor
    rtgen build --gpu rtx4080-laptop          for another machine
    """
    from rtgen.build.fitting import build_fitting
    from rtgen.build.request import BuildRequest

    with output.progress() as progress:
        names = dict.fromkeys(resolve_gpu(name, progress) for name in gpu or ("auto",))
        outcomes = {
            name: build_fitting(
                BuildRequest(
                    name,
                    model,
                    recipe,
                    tuple(sizes),
                    weights,
                    store,
                    force,
                    decoder,
                    calibration_prompts,
                    kv_bits,
                    backend,
                ),
                progress,
            )
            for name in names
        }
    packages = [{"gpu": name, **outcome_data(outcome)} for name, outcome in outcomes.items()]
    paths = [str(outcome.package) for outcome in outcomes.values()]
    summary = [line for outcome in outcomes.values() for line in _summary(outcome)]
    return Result({**packages[0], "packages": packages}, lines=paths, quiet=paths, summary=summary)


def outcome_data(outcome: "BuildOutcome") -> dict[str, Any]:
    """The fields of the JSON object that describe a built package."""
    return {
        "package": str(outcome.package),
        "key": outcome.key,
        "cached": outcome.cached,
        "seconds": round(outcome.seconds, 3),
        "memory_plan": plan_data(outcome.manifest.memory_plan),
        "stages": [
            {"name": stage.name, "seconds": round(stage.seconds, 3), "cached": stage.cached} for stage in outcome.stages
        ],
    }


def plan_data(plan: "MemoryPlan") -> dict[str, int]:
    """Bytes by term, then ``total`` and ``vram``."""
    terms: dict[str, int] = plan.model_dump()
    vram = terms.pop("vram")
    return {**terms, "total": plan.total, "vram": vram}


def plan_lines(plan: Mapping[str, int]) -> list[str]:
    """The memory plan for people, one term a line."""
    terms = {name.replace("_", " "): bytes_text(count) for name, count in plan.items() if name not in ("total", "vram")}
    share = f"{bytes_text(plan['total'])} of {bytes_text(plan['vram'])} ({plan['total'] / plan['vram']:.0%})"
    return ["memory plan", *pairs({**terms, "total": share}, indent="  ")]


def _summary(outcome: "BuildOutcome") -> list[str]:
    manifest = outcome.manifest
    ring = "" if manifest.kv_bits == 16 else f", K/V in {manifest.kv_bits} bits"
    what = f"{manifest.model.name} for {manifest.target.gpu}, recipe {manifest.recipe}{ring}"
    done = "already built" if outcome.cached else f"built in {outcome.seconds:.1f} s"
    compiler = f"{manifest.compiler.name} {manifest.compiler.version}"
    files = {
        name: f"{bytes_text(sum(manifest.files[file].size for file in (part.file, *part.weights)))}  {part.file}"
        for name, part in manifest.components.items()
    }
    head = f"{what}: {done} ({compiler}, key {outcome.key[:12]})"
    return [head, *pairs({name.replace("_", " "): text for name, text in files.items()}, indent="  "), *plan_lines(
        plan_data(manifest.memory_plan)
    )]  # fmt: skip
