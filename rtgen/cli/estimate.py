"""``rtgen estimate``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rtgen.cli.group import command
from rtgen.cli.options import (
    DEFAULT_MODEL,
    decoder_option,
    gpu_option,
    model_option,
    recipe_option,
    resolve_gpu,
    size_option,
)
from rtgen.cli.output import Output, Result
from rtgen.errors import UsageError

if TYPE_CHECKING:
    from rtgen.estimate.advice import Alternative
    from rtgen.estimate.efficiencies import Efficiencies
    from rtgen.estimate.prediction import Prediction

AUTO = "auto"


@command("estimate")
@gpu_option(default=AUTO, show_default=True)
@model_option()
@recipe_option()
@size_option()
@click.option(
    "--kv-bits", metavar="N", type=click.Choice(["16", "8", "4"]),
    help="Bits of a number in the K/V ring: 16, 8 or 4; those of the recipe's precision by default.",
)  # fmt: skip
@click.option("--window", metavar="N", type=int, help="Latent frames that the K/V ring holds; the model's by default.")
@click.option("--steps", metavar="N", type=int, help="Denoise passes of a chunk; the model's by default.")
@decoder_option()
@click.option("--validate", is_flag=True, help="Compare with published figures instead, as a Markdown table.")
def estimate(
    output: Output,
    gpu: str,
    model: str,
    recipe: str | None,
    size: tuple[int, int] | None,
    kv_bits: str | None,
    window: int | None,
    steps: int | None,
    decoder: str | None,
    validate: bool,
) -> Result:
    """Predict the speed, memory and power of a model on a GPU, and what would lift it.

    Nothing is built or run: operations and bytes are counted from the configs and divided by the GPU's rates, times the
    share of them that kernels reach (configs/estimate).

    \b
    rtgen estimate --gpu rtx4080-laptop --model longlive-1.3b
    rtgen estimate --gpu rtx4080-laptop --model longlive-1.3b --recipe int4 --kv-bits 4
    rtgen estimate --validate
    """
    from rtgen.estimate.efficiencies import load_efficiencies
    from rtgen.estimate.prediction import predict
    from rtgen.estimate.setting import setting

    if validate:
        given = [value for value in (recipe, size, kv_bits, window, steps, decoder) if value is not None]
        if given or (gpu, model) != (AUTO, DEFAULT_MODEL):
            raise UsageError(
                "--validate takes no other settings: each published figure has its own",
                hint="rtgen estimate --validate",
            )
        return _validated(load_efficiencies())
    with output.progress() as progress:
        target = resolve_gpu(gpu, progress)
    wanted = setting(
        target,
        model,
        recipe=recipe,
        size=size,
        kv_bits=None if kv_bits is None else int(kv_bits),
        window=window,
        steps=steps,
        decoder=decoder,
    )
    efficiencies = load_efficiencies()
    return _estimated(predict(wanted, efficiencies), efficiencies)


def _estimated(base: "Prediction", efficiencies: "Efficiencies") -> Result:
    from rtgen.cli.estimate_text import Findings, describe
    from rtgen.estimate.advice import alternatives
    from rtgen.estimate.prediction import predict, used_efficiencies

    findings = Findings(
        base,
        predict(base.setting, efficiencies, "low"),
        predict(base.setting, efficiencies, "high"),
        tuple(alternatives(base, efficiencies)),
        used_efficiencies(base.setting, efficiencies),
    )
    data = {
        **_settings(base),
        **_figures(base),
        "fps_range": [findings.low.fps, findings.high.fps],
        "denoise_fps_range": [findings.low.denoise_fps, findings.high.denoise_fps],
        "denoise_pass_s": base.pass_seconds,
        "clean_pass_s": base.pass_seconds,
        "decode_s": base.decode_seconds,
        "frames": base.setting.frames,
        "memory_plan": {**base.memory.model_dump(), "total": base.memory.total},
        "power_w": base.power,
        "frame_energy_j": base.frame_energy,
        "parts": _parts(base),
        "limited_by": {"part": base.limit.part, "by": base.limit.limit},
        "alternatives": [_alternative(item) for item in findings.alternatives],
        "efficiencies": [entry.model_dump(mode="json") for entry in findings.efficiencies],
    }
    return Result(data, lines=describe(findings), quiet=[f"{base.fps:.2f}"])


def _settings(prediction: "Prediction") -> dict[str, Any]:
    setting = prediction.setting
    return {
        "gpu": setting.gpu.name,
        "model": setting.model.name,
        "recipe": setting.recipe.name,
        "size": list(setting.size),
        "kv_bits": setting.kv_bits,
        "window": setting.model.cache.window,
        "steps": setting.steps,
        "decoder": setting.model.decoder,
    }


def _figures(prediction: "Prediction") -> dict[str, Any]:
    return {
        "fps": prediction.fps,
        "denoise_fps": prediction.denoise_fps,
        "memory": prediction.memory.total,
        "fits": prediction.fits,
    }


def _parts(prediction: "Prediction") -> Sequence[dict[str, Any]]:
    return [
        {
            "part": cost.part,
            "seconds": cost.seconds,
            "share": cost.seconds / prediction.chunk_seconds,
            "operations": cost.operations,
            "bytes": cost.bytes,
            "limited_by": cost.limit,
        }
        for cost in prediction.parts
    ]


def _alternative(item: "Alternative") -> dict[str, Any]:
    about = {"option": item.option, "gain": item.gain, "note": item.note}
    return about | _figures(item.prediction)


def _validated(efficiencies: "Efficiencies") -> Result:
    from rtgen.cli.estimate_text import comparison_table
    from rtgen.estimate.validation import validate

    comparisons = validate(efficiencies)
    data = [
        {**item.figure.model_dump(mode="json"), "estimate": item.estimate, "deviation": item.deviation}
        for item in comparisons
    ]
    checks = [item for item in comparisons if item.figure.role == "check"]
    worst = max(checks, key=lambda item: abs(item.deviation))
    return Result(
        {"figures": data},
        lines=comparison_table(comparisons),
        quiet=[f"{item.deviation:+.1%} {item.figure.title}" for item in comparisons],
        summary=[f"{len(checks)} figures that nothing was fitted to; the farthest is {worst.deviation:+.1%} off"],
    )
