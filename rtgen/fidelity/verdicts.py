"""Which figures are reached, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rtgen.fidelity.findings import Measured, Recipe, Reference, Verdict
from rtgen.fidelity.metrics import JUST_NOTICEABLE

if TYPE_CHECKING:
    from rtgen.config.recipe import Targets

EARLY_SECONDS: Final = 5.0
"""PSNR is asked for over the first seconds; later, streams that differ at all go different ways."""
DETAIL_CHANGE: Final = 0.10
"""Share by which detail may change; a tenth of a picture's contrast is about what is seen side by side."""
_LAYERS_NAMED: Final = 3


def judged(
    recipe: Recipe, targets: Targets, references: Sequence[Reference], floor: Sequence[Measured], attributes_note: str
) -> tuple[Verdict, ...]:
    """The verdicts on a recipe: PSNR over the first seconds, attributes at each length, drift at the greatest."""
    verdicts = []
    early = recipe.measured[0]
    if targets.psnr_db is not None:
        verdicts.append(_psnr(recipe, early, targets.psnr_db, floor))
    for measured, reference in zip(recipe.measured, references, strict=True):
        verdicts.append(_attributes(measured, reference, targets.attribute_points, attributes_note))
    late = recipe.measured[-1]
    if late.seconds > EARLY_SECONDS:
        verdicts.append(_drift(late))
    return tuple(verdicts)


def db(value: float | None) -> str:
    """Decibels for people."""
    return "∞ dB" if value is None else f"{value:.1f} dB"


def _psnr(recipe: Recipe, measured: Measured, wanted: float, floor: Sequence[Measured]) -> Verdict:
    reached = measured.psnr_db is None or measured.psnr_db >= wanted
    return Verdict(
        name=f"PSNR over the first {measured.seconds:g} s",
        kind="psnr",
        seconds=measured.seconds,
        measured=db(measured.psnr_db),
        wanted=f"{wanted:g} dB or more",
        reached=reached,
        why="" if reached else _why_psnr(recipe, measured, wanted, floor),
    )


def _why_psnr(recipe: Recipe, measured: Measured, wanted: float, floor: Sequence[Measured]) -> str:
    first = [value for value in measured.frame_psnr_db[: _frames(measured, 1.0)] if value is not None]
    passes = db(recipe.velocity_snr_db)
    parts = [f"What one pass of the denoiser says is {passes} above its error, and every chunk starts from the last."]
    if first:
        parts.append(f"The least of the first second is {db(min(first))}{_crossing(measured, wanted)}.")
    reaching = sum(value is None or value >= wanted for value in measured.clip_psnr_db)
    finite = [value for value in measured.clip_psnr_db if value is not None]
    if measured.clips > 1 and finite:
        parts.append(
            f"{reaching} of {measured.clips} clips reach it: streams that turn another way at one moment decide "
            f"({db(min(finite))} to {db(max(finite))})."
        )
    weakest = sorted(
        (layer for layer in recipe.layers if layer.snr_db is not None and layer.weights != "float"),
        key=lambda layer: layer.snr_db or 0.0,
    )[:_LAYERS_NAMED]
    if weakest:
        named = ", ".join(f"{layer.name.removesuffix('.weight')} ({db(layer.snr_db)})" for layer in weakest)
        parts.append(f"Weakest layers: {named}.")
    if floor:
        parts.append(f"Float32 arithmetic alone, with nothing quantized, makes {db(floor[0].psnr_db)}.")
    return " ".join(parts)


def _crossing(measured: Measured, wanted: float) -> str:
    """From when on the frames are below what is wanted."""
    below = [value is not None and value < wanted for value in measured.frame_psnr_db]
    if not any(below):
        return ""
    at = below.index(True) * measured.seconds / len(below)
    return f"; frames fall below {wanted:g} dB at {at:.1f} s"


def _frames(measured: Measured, seconds: float) -> int:
    return max(1, round(len(measured.frame_psnr_db) * seconds / measured.seconds))


def _attributes(measured: Measured, reference: Reference, limit: float, note: str) -> Verdict:
    name, wanted = f"attributes at {measured.seconds:g} s", f"at most {limit:g} points below the unquantized model's"
    points, accuracy = measured.attribute_points, measured.attribute_accuracy
    if points is None or accuracy is None:
        return Verdict(
            name=name, kind="attributes", seconds=measured.seconds, measured="not measured", wanted=wanted,
            reached=None, why=note,
        )  # fmt: skip
    reached = points >= -limit - 1e-9
    margin = "" if measured.attribute_margin is None else f" ± {measured.attribute_margin:.1f}"
    return Verdict(
        name=name,
        kind="attributes",
        seconds=measured.seconds,
        measured=f"{accuracy:.1%} ({points:+.1f}{margin} points)",
        wanted=wanted,
        reached=reached,
        why="" if reached else _why_attributes(measured, reference),
    )


def _why_attributes(measured: Measured, reference: Reference) -> str:
    assert measured.attributes is not None and reference.attributes is not None
    changes = {name: 100 * (share - reference.attributes[name]) for name, share in measured.attributes.items()}
    lost = sorted((points, name) for name, points in changes.items() if points < 0)[:3]
    parts = [f"Most is lost of {', '.join(f'{name} ({points:+.1f} points)' for points, name in lost)}."] if lost else []
    answers = measured.clips * len(changes)
    margin = measured.attribute_margin
    if margin is None or margin >= abs(measured.attribute_points or 0.0):
        parts.append(
            f"{measured.clips} clips are {answers} answers, too few to tell it from chance: --clips asks for more."
        )
    return " ".join(parts)


def _drift(measured: Measured) -> Verdict:
    colour, detail = measured.colour_shift, measured.detail_ratio - 1
    problems = []
    if colour > JUST_NOTICEABLE:
        problems.append(
            f"The mean colour of the last seconds is {colour:.1f} CIELAB units from the unquantized model's."
        )
    if abs(detail) > DETAIL_CHANGE:
        more = "more" if detail > 0 else "less"
        problems.append(f"The last seconds have {abs(detail):.0%} {more} detail than the unquantized model's.")
    return Verdict(
        name=f"no visible drift at {measured.seconds:g} s",
        kind="drift",
        seconds=measured.seconds,
        measured=f"colour {colour:.1f}, detail {detail:+.0%}",
        wanted=f"colour within {JUST_NOTICEABLE:g} (CIELAB, just noticeable), detail within {DETAIL_CHANGE:.0%}",
        reached=not problems,
        why=" ".join(problems),
    )
