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
from rtgen.errors import NoGpuError, PackageInvalidError, PackageMissingError, PromptError, SizeError, UsageError

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.progress import Progress
    from rtgen.runtime.pipeline import Pipeline

DEFAULT_SECONDS = 5.0
EXAMPLE = 'rtgen run --prompt "a red hot air balloon over the mountains at sunset"'


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
    help=".mp4, .mkv, .webm, .gif or .webp, folder/ for images, or - for stdout. Named after the prompt by default.",
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
    rtgen run --prompt "a red hot air balloon over the mountains at sunset"
    rtgen run --prompt "a blue bird over a lake" --seconds 3 -o bird.gif
    """
    text = _checked_prompt(prompt)
    count = _frame_count(seconds, frames, model)
    target = destination or default_destination(text, seed, Path())
    check_destination(target)
    from rtgen.build.request import BuildRequest
    from rtgen.runtime.player import play

    with output.progress() as progress:
        request = BuildRequest(resolve_gpu(gpu, progress), model, recipe, _own_sizes(size, model), weights, store)
        with _open(request, progress, may_build=not no_build) as pipeline:
            summary = dataclasses.asdict(play(pipeline, target, text, seed, count, size, _live_line(progress, count)))
            package = str(pipeline.package.path)
    data = {**summary, "package": package, "prompt": text, "seed": seed}
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
    from rtgen.runtime.profiles import serves

    config = load_model(model)
    exact_profile(config, size)  # refuses what no package could serve
    return () if any(serves(profile, size) for profile in config.resolution.profiles) else (size,)


def _open(request: "BuildRequest", progress: "Progress", *, may_build: bool) -> "Pipeline":
    """The package's pipeline; the package comes from the store, or is built."""
    from rtgen.build.walk import build, package_key
    from rtgen.runtime.pipeline import Pipeline
    from rtgen.store.store import Store

    _require_device(request.gpu)
    found = Store(request.store).find_package(request.model, request.gpu, package_key(request))
    if found is not None:
        try:
            return Pipeline.open(found)
        except PackageInvalidError:
            if not may_build:
                raise
            progress.note("the package in the store is damaged: building it again")
    elif request.sizes:
        raise _unserved(request)
    else:
        reason = f"there is no package of {request.model} for {request.gpu} with these settings"
        if not may_build:
            hint = f"rtgen build --gpu {request.gpu} --model {request.model}, or leave out --no-build"
            raise PackageMissingError(reason, hint=hint)
        progress.note(f"{reason}: building it (rtgen build does that ahead of time)")
    return Pipeline.open(build(request, progress).package)


def _require_device(gpu: str) -> None:
    """Refuse a GPU's package on a machine without one before minutes go into building it. Raises NoGpuError."""
    from rtgen.config.load import load_gpu
    from rtgen.runtime.select import detect_gpus

    if load_gpu(gpu).compute_capability is not None and not detect_gpus():
        raise NoGpuError(
            f"{gpu} packages run on an NVIDIA GPU, and this machine has none with a working driver",
            hint="rtgen run --gpu cpu runs on the processor; rtgen build works without a GPU",
        )


def _unserved(request: "BuildRequest") -> SizeError:
    """Neither the model's ordinary package nor one of its own serves the one size of the request."""
    from rtgen.config.load import load_model

    profiles = load_model(request.model).resolution.profiles
    ranges = " or ".join(f"{p.min[0]}x{p.min[1]} to {p.max[0]}x{p.max[1]}" for p in profiles)
    size = "x".join(map(str, request.sizes[0]))
    return SizeError(
        f"{request.model} for {request.gpu} serves frames of {ranges}, not {size}",
        hint=f"rtgen build --gpu {request.gpu} --model {request.model} --size {size} makes a package that does",
    )


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
