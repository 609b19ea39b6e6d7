"""``rtgen run``."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtgen.cli.destination import STANDARD_OUTPUT, check_destination, default_destination
from rtgen.cli.group import command
from rtgen.cli.opening import chosen_size, open_pipeline
from rtgen.cli.options import build_options, parse_size, resolve_gpu
from rtgen.cli.output import Output, Result
from rtgen.errors import PromptError, UsageError

if TYPE_CHECKING:
    from rtgen.progress import Progress
    from rtgen.runtime.player import Change

DEFAULT_SECONDS = 5.0
PACES = ("fastest", "realtime")
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
@click.option(
    "--then", metavar="S TEXT", type=(float, str), multiple=True,
    help="From second S on, go on with another prompt, or with frames of another size (size=HxW); repeatable.",
)  # fmt: skip
@click.option(
    "--error-budget", metavar="E", type=float, default=0.0, show_default=True,
    help="Leave out denoise passes that change a chunk by at most E, such as 0.05.",
)  # fmt: skip
@click.option(
    "--pace", type=click.Choice(PACES), default=PACES[0], show_default=True,
    help="As fast as it can, or at the model's frame rate: then a late stream sheds passes before it drops frames.",
)  # fmt: skip
@click.option("--no-build", is_flag=True, help="Fail if the package is missing, instead of building it.")
def run(
    output: Output,
    prompt: str | None,
    gpu: str,
    model: str,
    recipe: str | None,
    size: tuple[int, int] | None,
    decoder: str | None,
    kv_bits: int | None,
    backend: str | None,
    calibration_prompts: Path | None,
    weights: Path | None,
    store: Path | None,
    seed: int,
    seconds: float | None,
    frames: int | None,
    destination: str | None,
    then: tuple[tuple[float, str], ...],
    error_budget: float,
    pace: str,
    no_build: bool,
) -> Result:
    """Make a video from a prompt.

    The package that suits the size best is taken from the store; if there is none, one is built first.

    \b
    rtgen run --prompt "a red hot air balloon over the mountains at sunset"
    rtgen run --prompt "a blue bird over a lake" --seconds 3 -o bird.gif
    rtgen run --prompt "a red kite over a meadow at noon" --then 3 "a red kite over a meadow at night" --seconds 6
    rtgen run --prompt "a red kite over a meadow at noon" --size 96x96 --then 2 size=192x192
    """
    text = _checked_prompt(prompt)
    count, shape = _frame_count(seconds, frames, model), chosen_size(size, model)
    changes = _changes(then, model)
    target = destination or default_destination(text, seed, Path())
    check_destination(target)
    from rtgen.build.request import BuildRequest
    from rtgen.runtime.adaptive import checked_budget
    from rtgen.runtime.pace import RealTime
    from rtgen.runtime.player import play

    budget = checked_budget(error_budget)
    with output.progress() as progress:
        request = BuildRequest(
            resolve_gpu(gpu, progress), model, recipe, (), weights, store, False, decoder, calibration_prompts, kv_bits,
            backend,
        )  # fmt: skip
        sizes = dict.fromkeys([shape, *(change.size for change in changes if change.size is not None)])
        with open_pipeline(request, list(sizes), progress, may_build=not no_build) as pipeline:
            live = _live_line(progress, count)
            rate = pipeline.manifest.model.frames_per_second
            paced = RealTime(rate, budget) if pace == "realtime" else None
            played = play(
                pipeline, target, text, seed, count, shape, live, error_budget=budget, then=changes, pace=paced
            )
            package = str(pipeline.package.path)
    summary = dataclasses.asdict(played)
    data = {**summary, "package": package, "prompt": text, "seed": seed, "error_budget": budget, "pace": pace}
    warnings = [f"warning: {warning}" for warning in summary["warnings"]]
    names = [] if target == STANDARD_OUTPUT else [target]
    return Result(data, lines=names, quiet=names, summary=[*warnings, *_sentences(data)])


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


def _live_line(progress: "Progress", frames: int) -> Callable[[int, float, float | None], None]:
    def on_progress(done: int, fps: float, time_to_first_frame_s: float | None) -> None:
        first = "" if time_to_first_frame_s is None else f", first frame after {time_to_first_frame_s:.2f} s"
        progress.update("video", min(done / frames, 1.0), f"{done}/{frames} frames, {fps:.1f} FPS{first}")

    return on_progress


def _changes(then: tuple[tuple[float, str], ...], model: str) -> "list[Change]":
    """Later prompts and sizes, each with the number of frames before it."""
    from rtgen.config.load import load_model
    from rtgen.runtime.player import Change

    changes = []
    for second, what in then:
        if not 0 < second < math.inf:
            raise UsageError(f"--then takes a second after the start, not {second:g}", hint='such as --then 3 "TEXT"')
        frames = round(second * load_model(model).frames_per_second)
        name, is_setting, value = what.strip().partition("=")
        if name == "size" and is_setting:
            changes.append(Change(frames, size=chosen_size(parse_size(value), model)))
        else:
            changes.append(Change(frames, prompt=_checked_prompt(what)))
    return changes


def _sentences(run: dict[str, Any]) -> list[str]:
    speed = (
        f"{run['frames']} frames in {run['seconds']:.1f} s: {run['fps']:.1f} FPS, first frame after "
        f"{run['time_to_first_frame_s']:.2f} s ({run['backend']}, {run['device']})"
    )
    passes = f"{run['denoise_passes']:.1f} denoise passes a chunk, {run['saved_passes']:.0%} left out"
    adapts = run["error_budget"] or run["shed_passes"]
    return [speed, *_steadiness(run), *([passes] if adapts else []), *_real_time(run), *_gpu(run)]


def _steadiness(run: dict[str, Any]) -> list[str]:
    if run["steady_fps"] is None or run["loop_fps"] is None:
        return []
    line = f"after the first chunk {run['steady_fps']:.1f} FPS; denoising alone {run['loop_fps']:.1f} FPS"
    if run["chunk_jitter_p95"] is None:
        return [line]
    jitter = f"{run['chunk_jitter_p95']:.2f} (95 %) and {run['chunk_jitter_max']:.2f} (longest) of the median"
    return [f"{line}; time between chunks {jitter}"]


def _real_time(run: dict[str, Any]) -> list[str]:
    if run["pace"] != "realtime":
        return []
    shed, dropped = run["shed_passes"], run["dropped_frames"]
    return [f"real time: {shed} passes shed, {dropped} frames dropped, {run['paused_s']:.1f} s of pauses"]


def _gpu(run: dict[str, Any]) -> list[str]:
    parts: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("gpu_memory_bytes", lambda value: f"{value / 2**30:.2f} GiB in use"),
        ("gpu_power_w", lambda value: f"{value:.0f} W"),
        ("gpu_utilisation", lambda value: f"{value:.0%} busy"),
    )
    known = [text(run[key]) for key, text in parts if run[key] is not None]
    return [f"GPU: {', '.join(known)}"] if known else []
