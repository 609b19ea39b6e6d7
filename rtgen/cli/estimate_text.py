"""An estimate for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtgen.cli.table import bytes_text, columns, pairs, size_text

if TYPE_CHECKING:
    from rtgen.estimate.advice import Alternative
    from rtgen.estimate.efficiencies import Efficiency
    from rtgen.estimate.prediction import PartCost, Prediction
    from rtgen.estimate.validation import Comparison

BAR = 24
"""Characters of a bar that stands for the whole."""

LEAST_GAIN = 0.005
"""Of the frame rate; changes that gain less are left out."""

LIMITS = {"arithmetic": "arithmetic", "bandwidth": "memory bandwidth", "latency": "starting kernels"}
ROLES = {"fitted": "fitted", "check": "check", "other": "another model"}


@dataclass(frozen=True)
class Findings:
    """All that ``rtgen estimate`` says of a setting."""

    base: Prediction
    low: Prediction
    """With every efficiency at the lower end of its range."""
    high: Prediction
    alternatives: Sequence[Alternative]
    efficiencies: Sequence[Efficiency]


def describe(findings: Findings) -> list[str]:
    """The whole answer."""
    setting = findings.base.setting
    return [
        f"{setting.model.title.partition(',')[0]} ({setting.model.name}) at {size_text(setting.size)} on "
        f"{setting.gpu.title}",
        _words(findings.base),
        "",
        *_answer(findings),
        "",
        *_parts(findings.base),
        "",
        *_memory(findings.base),
        "",
        *_advice(findings),
        "",
        *_basis(findings),
    ]


def comparison_table(comparisons: Sequence[Comparison]) -> list[str]:
    """Published figures beside the estimate, in Markdown."""
    rows = [
        [
            item.figure.title,
            item.figure.gpu,
            f"{item.figure.value:g}",
            f"{item.estimate:.3g}",
            f"{round(item.deviation, 3) + 0.0:+.1%}",  # no minus before a zero
            ROLES[item.figure.role],
            item.figure.source,
        ]
        for item in comparisons
    ]
    header = ["figure", "GPU", "published", "estimate", "off by", "role", "source"]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _words(prediction: Prediction) -> str:
    setting = prediction.setting
    return (
        f"recipe {setting.recipe.name}, K/V in {setting.kv_bits} bits, window of {setting.model.cache.window} latent "
        f"frames, {setting.steps} denoise passes and a clean one, decoder {setting.model.decoder}"
    )


def _answer(findings: Findings) -> list[str]:
    base, low, high = findings.base, findings.low, findings.high
    memory, real_time = base.memory, base.setting.model.frames_per_second
    return pairs(
        {
            "speed": f"{base.fps:.1f} FPS end to end ({low.fps:.1f} to {high.fps:.1f}); real time is {real_time}",
            "denoising alone": f"{base.denoise_fps:.1f} FPS ({low.denoise_fps:.1f} to {high.denoise_fps:.1f})",
            "a pass": f"{_ms(base.pass_seconds)} in a full window, denoise and clean alike",
            "the decoder": f"{_ms(base.decode_seconds)} a chunk of {base.setting.frames} frames",
            "memory": f"{bytes_text(memory.total)} of {bytes_text(memory.vram)}"
            + ("" if base.fits else ": does not fit"),
            "power": f"at most {base.power:.0f} W, {base.frame_energy:.3g} J a frame",
        }
    )


def _memory(prediction: Prediction) -> list[str]:
    """The terms of the memory plan, the largest first, as shares of the GPU's memory."""
    from rtgen.engine.memory_plan import describe as terms

    plan = prediction.memory
    rows = [
        [name.removeprefix("the "), bytes_text(count), f"{count / plan.vram:.0%}", _bar(count / plan.vram)]
        for name, count in terms(plan)
        if count
    ]
    return columns(["memory", "size", "share", ""], rows)


def _parts(prediction: Prediction) -> list[str]:
    rows = [_part(cost, cost.seconds / prediction.chunk_seconds) for cost in prediction.parts]
    return columns(["part", "a chunk", "share", "", "TFLOP", "GB moved", "limited by"], rows)


def _part(cost: PartCost, share: float) -> list[str]:
    from rtgen.estimate.operations import TITLES

    counts = (f"{cost.operations / 1e12:.3g}", f"{cost.bytes / 1e9:.3g}")
    return [TITLES[cost.part], _ms(cost.seconds), f"{share:.0%}", _bar(share), *counts, LIMITS[cost.limit]]


def _advice(findings: Findings) -> Iterator[str]:
    from rtgen.estimate.operations import TITLES

    limit = findings.base.limit
    yield f"most goes to {TITLES[limit.part]}, limited by {LIMITS[limit.limit]}"
    if not findings.base.fits:
        fitting = [item.option for item in findings.alternatives if item.prediction.fits]
        yield f"what would make it fit: {' or '.join(fitting)}" if fitting else "no single setting would make it fit"
    helping = [item for item in findings.alternatives if item.gain >= LEAST_GAIN]
    yield from _best(helping)
    if helping:
        yield ""
        yield from columns(["change", "FPS", "gain", "memory", "but"], [_alternative(item) for item in helping])


def _best(helping: Sequence[Alternative]) -> Iterator[str]:
    """The most that one setting would do, among those that fit the GPU's memory."""
    fitting = [item for item in helping if item.prediction.fits]
    if not fitting:
        yield "no single setting would lift it"
        return
    yield f"what would lift it most: {fitting[0].option} ({fitting[0].gain:+.0%})"


def _alternative(item: Alternative) -> list[str]:
    memory = bytes_text(item.prediction.memory.total) + ("" if item.prediction.fits else " (too much)")
    return [item.option, f"{item.prediction.fps:.1f}", f"{item.gain:+.0%}", memory, item.note]


_RINGS: Mapping[str, str] = {
    "int8_ring_attention": "attention, 8-bit K/V",
    "int4_ring_attention": "attention, 4-bit K/V",
}


def _basis(findings: Findings) -> Iterator[str]:
    yield "share of the GPU's rates that is reckoned with (sources: configs/estimate/efficiencies.toml)"
    rows = []
    for entry in findings.efficiencies:
        kind, share = _RINGS.get(entry.kind, entry.kind), f"{entry.low:g} to {entry.high:g}"
        rows.append([kind, "/".join(entry.types), f"{entry.value:.2f}", share, entry.status])
    yield from columns(["work", "types", "share", "range", "basis"], rows)


def _bar(share: float) -> str:
    return "#" * max(1, round(share * BAR))


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"
