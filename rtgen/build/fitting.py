"""Building for a GPU that may have too little memory for all sizes of a model: as many of them as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rtgen.build.plan import plan_build
from rtgen.build.sizes import fewer_sizes, requested_profiles
from rtgen.build.walk import BuildOutcome, build
from rtgen.engine.manifest import Entry
from rtgen.errors import MemoryPlanError
from rtgen.runtime.profiles import serve_all, served_ranges

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.config.model import ModelConfig, Size
    from rtgen.progress import Progress

STAGE = "refused"
"""Kind of the stages that remember what did not fit: often only finished engines tell."""
RECORD = "refusal.json"
_LIMIT = 1 << 16


class Refusal(Entry):
    """The whole of ``refusal.json``: what a MemoryPlanError said."""

    message: str
    hint: str | None


def build_fitting(request: BuildRequest, progress: Progress, serving: Sequence[Size] = ()) -> BuildOutcome:
    """:func:`rtgen.build.walk.build`; where no sizes are asked for, of the model's own as many as fit the GPU.

    The greatest are left out first, and the user is told. ``serving``: sizes that the package has to serve; if need
    be it is built for these alone. Raises as ``build``, and MemoryPlanError when nothing of the kind fits.
    """
    model = plan_build(request).model
    attempts = _attempts(model, request.sizes, tuple(serving))
    for sizes, following in pairwise(attempts):
        try:
            return _build(replace(request, sizes=sizes), progress)
        except MemoryPlanError as error:
            whole, rest = (served_ranges(requested_profiles(model, some)) for some in (sizes, following))
            progress.note(f"{model.name} at {whole} {error.message}: building it for {rest}")
    return _build(replace(request, sizes=attempts[-1]), progress)


def _attempts(model: ModelConfig, asked: tuple[Size, ...], serving: tuple[Size, ...]) -> list[tuple[Size, ...]]:
    """What to ask the build for, one after the other."""
    if asked:
        return [asked]
    ordinary = [(), *fewer_sizes(model)]
    if not serving:
        return ordinary
    suitable = [sizes for sizes in ordinary if serve_all(requested_profiles(model, sizes), serving)]
    return list(dict.fromkeys([*suitable, serving]))


def _build(request: BuildRequest, progress: Progress) -> BuildOutcome:
    """Build, or raise MemoryPlanError at once where an earlier build of the same key did."""
    plan = plan_build(request)
    known = _read(plan.store.find_stage(STAGE, plan.package_key))
    is_there = plan.store.find_package(plan.model.name, plan.gpu.name, plan.package_key) is not None
    if known is not None and not is_there and not request.force:
        raise MemoryPlanError(known.message, hint=known.hint)
    try:
        return build(request, progress)
    except MemoryPlanError as error:
        refusal = Refusal(message=error.message, hint=error.hint)
        plan.store.stage(STAGE, plan.package_key, lambda folder: _write(folder, refusal))
        raise


def _write(folder: Path, refusal: Refusal) -> None:
    (folder / RECORD).write_text(refusal.model_dump_json(), encoding="utf-8")


def _read(folder: Path | None) -> Refusal | None:
    if folder is None:
        return None
    try:
        with (folder / RECORD).open("rb") as file:
            return Refusal.model_validate_json(file.read(_LIMIT))
    except (OSError, ValidationError):
        return None
