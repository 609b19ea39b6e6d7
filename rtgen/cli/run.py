"""``rtgen run``."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtgen.cli.destination import STANDARD_OUTPUT, check_destination, default_destination
from rtgen.cli.group import command
from rtgen.cli.options import build_options, resolve_gpu
from rtgen.cli.output import Output, Result
from rtgen.errors import PackageMissingError, PromptError, UsageError

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.progress import Progress

DEFAULT_SECONDS = 5.0
EXAMPLE = 'rtgen run --prompt "a red sailing boat on a calm sea at dusk"'


def _video_on_stdout(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    output = ctx.find_object(Output)
    if output is not None and value == STANDARD_OUTPUT:
        output.data_on_stderr = True
    return value


@command("run")
@click.option("--prompt", metavar="TEXT", help="What the video shows.")
@build_options(sizes=False)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
    help="Another seed, another video.",
)  # fmt: skip
@click.option("--seconds", metavar="S", type=float, help=f"Length of the video; {DEFAULT_SECONDS:g} by default.")
@click.option("--frames", metavar="N", type=int, help="Length of the video in frames.")
@click.option(
    "-o", "--output", "destination", metavar="FILE", is_eager=True, callback=_video_on_stdout,
    help=".mp4, .mkv, .webm or .gif file, folder/ for images, or - for stdout. Named after the prompt by default.",
)  # fmt: skip
@click.option("--no-build", is_flag=True, help="Fail if the package is missing, instead of building it.")
def run(
    output: Output,
    prompt: str | None,
    gpu: str,
    model: str,
    recipe: str | None,
    size: tuple[int, int] | None,
    weights: Path | None,
    store: Path | None,
    seed: int,
    seconds: float | None,
    frames: int | None,
    destination: str | None,
    no_build: bool,
) -> Result:
    """Make a video from a prompt.

    A package that is missing is built first.

    \b
    rtgen run --prompt "a red sailing boat on a calm sea at dusk"
    rtgen run --prompt "a lighthouse in a storm" --seconds 3 -o lighthouse.gif
    """
    text = _checked_prompt(prompt)
    count = _frame_count(seconds, frames, model)
    target = destination or default_destination(text, seed, Path())
    check_destination(target)
    from rtgen.build.request import BuildRequest

    with output.progress() as progress:
        request = BuildRequest(resolve_gpu(gpu, progress), model, recipe, _own_sizes(size, model), weights, store)
        package = _package(request, progress, may_build=not no_build)
        summary = _play(package, target, text, seed, count, size, progress)
    data = {**summary, "package": str(package), "prompt": text, "seed": seed}
    warnings = [f"warning: {warning}" for warning in summary["warnings"]]
    names = [] if target == STANDARD_OUTPUT else [target]
    return Result(data, lines=names, quiet=names, summary=[*warnings, _sentence(summary)])


def _checked_prompt(prompt: str | None) -> str:
    text = " ".join((prompt or "").split())
    if not text:
        reason = "there is no prompt" if prompt is None else "the prompt is empty"
        raise PromptError(reason, hint=f"say what the video shows: {EXAMPLE}")
    return text


def _frame_count(seconds: float | None, frames: int | None, model: str) -> int:
    if seconds is not None and frames is not None:
        raise UsageError("--seconds and --frames exclude each other", hint="give the one that you mean")
    if frames is not None:
        if frames < 1:
            raise UsageError(f"--frames must be positive, not {frames}", hint="such as --frames 48")
        return frames
    length = DEFAULT_SECONDS if seconds is None else seconds
    if not 0 < length < math.inf:
        raise UsageError(f"--seconds must be positive, not {length:g}", hint=f"such as --seconds {DEFAULT_SECONDS:g}")
    from rtgen.config.load import load_model

    return max(1, round(length * load_model(model).frames_per_second))


def _own_sizes(size: tuple[int, int] | None, model: str) -> tuple[tuple[int, int], ...]:
    """The sizes to ask the build for: none when the model's ordinary package serves ``size``. Raises SizeError."""
    if size is None:
        return ()
    from rtgen.build.plan import exact_profile
    from rtgen.config.load import load_model

    config = load_model(model)
    exact_profile(config, size)  # refuses what no package could serve
    in_ordinary_package = any(
        all(low <= edge <= high for low, edge, high in zip(profile.min, size, profile.max, strict=True))
        for profile in config.resolution.profiles
    )
    return () if in_ordinary_package else (size,)


def _package(request: "BuildRequest", progress: "Progress", *, may_build: bool) -> Path:
    """The package's folder, from the store or freshly built."""
    from rtgen.build.walk import build, package_key
    from rtgen.store.store import Store

    found = Store(request.store).find_package(request.model, request.gpu, package_key(request))
    if found is None:
        reason = f"there is no package of {request.model} for {request.gpu} with these settings"
        if not may_build:
            hint = f"rtgen build --gpu {request.gpu} --model {request.model}, or leave out --no-build"
            raise PackageMissingError(reason, hint=hint)
        progress.note(f"{reason}: building it (rtgen build does that ahead of time)")
    elif not may_build:
        return found
    outcome = build(request, progress)
    if found is not None and not outcome.cached:
        progress.note("the package in the store was damaged, and was built again")
    return outcome.package


def _play(
    package: Path, target: str, prompt: str, seed: int, frames: int, size: tuple[int, int] | None, progress: "Progress"
) -> dict[str, Any]:
    from rtgen.runtime.pipeline import Pipeline
    from rtgen.runtime.player import play

    pipeline = Pipeline.open(package)
    try:
        return dataclasses.asdict(play(pipeline, target, prompt, seed, frames, size, _live_line(progress, frames)))
    finally:
        pipeline.close()


def _live_line(progress: "Progress", frames: int) -> Callable[[int, float, float | None], None]:
    def on_progress(done: int, fps: float, time_to_first_frame_s: float | None) -> None:
        first = "" if time_to_first_frame_s is None else f", first frame after {time_to_first_frame_s:.2f} s"
        progress.update("video", min(done / frames, 1.0), f"{done}/{frames} frames, {fps:.1f} FPS{first}")

    return on_progress


def _sentence(run: dict[str, Any]) -> str:
    return (
        f"{run['frames']} frames in {run['seconds']:.1f} s: {run['fps']:.1f} FPS, first frame after "
        f"{run['time_to_first_frame_s']:.2f} s ({run['backend']}, {run['device']})"
    )
