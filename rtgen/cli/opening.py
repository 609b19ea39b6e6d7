"""From what a user asks to see to an open pipeline: the package is found in the store, or built."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rtgen.cli.table import size_text
from rtgen.errors import PackageInvalidError, PackageMissingError, SizeError

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.progress import Progress
    from rtgen.runtime.pipeline import Pipeline


def chosen_size(size: tuple[int, int] | None, model: str) -> tuple[int, int]:
    """``size``, or the model's default. Raises SizeError for what no package could serve."""
    from rtgen.build.sizes import check_size
    from rtgen.config.load import load_model

    config = load_model(model)
    check_size(config, size or config.resolution.default)
    return size or config.resolution.default


def open_pipeline(
    request: "BuildRequest", sizes: Sequence[tuple[int, int]], progress: "Progress", *, may_build: bool
) -> "Pipeline":
    """The pipeline of a package that plays ``sizes``, the first one first; it comes from the store, or is built."""
    from rtgen.build.fitting import build_fitting
    from rtgen.build.lookup import find_package
    from rtgen.build.walk import build
    from rtgen.runtime.pipeline import Pipeline
    from rtgen.runtime.select import require_device

    require_device(request.gpu)
    found = find_package(request, *sizes)
    if found is not None:
        try:
            return Pipeline.open(found.path)
        except PackageInvalidError:
            if not may_build:
                raise
            progress.note("the package in the store is damaged: building it again")
            return Pipeline.open(build(found.request, progress).package)
    for size in sizes:
        _require_profile(request, size)
    what = f"there is no package of {request.model} for {request.gpu}"
    reason = f"{what} that serves {' and '.join(map(size_text, sizes))} with these settings"
    if not may_build:
        hint = f"rtgen build --gpu {request.gpu} --model {request.model}, or leave out --no-build"
        raise PackageMissingError(reason, hint=hint)
    progress.note(f"{reason}: building one (rtgen build does that ahead of time)")
    return Pipeline.open(build_fitting(request, progress, serving=sizes).package)


def _require_profile(request: "BuildRequest", size: tuple[int, int]) -> None:
    """Refuse to build for a size that the model is not meant for, unless asked to by name. Raises SizeError."""
    from rtgen.config.load import load_model
    from rtgen.runtime.profiles import served_ranges, serves

    profiles = load_model(request.model).resolution.profiles
    if not any(serves(profile, size) for profile in profiles):
        command = f"rtgen build --gpu {request.gpu} --model {request.model} --size {size_text(size)}"
        raise SizeError(
            f"{request.model} for {request.gpu} serves frames of {served_ranges(profiles)}, not {size_text(size)}",
            hint=f"{command} makes a package that does",
        )
