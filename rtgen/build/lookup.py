"""Which package of the store plays a frame size: one of several that differ in their sizes only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rtgen.build.plan import BuildPlan, plan_build
from rtgen.build.request import BuildRequest
from rtgen.build.sizes import sizes_of
from rtgen.config.model import Size
from rtgen.engine.manifest import Manifest
from rtgen.errors import MissingDependencyError, SizeError
from rtgen.runtime.profiles import pixels, serve_all


@dataclass(frozen=True)
class FoundPackage:
    """A package in the store."""

    path: Path
    request: BuildRequest
    """What builds it again."""


def find_package(request: BuildRequest, size: Size, *more: Size) -> FoundPackage | None:
    """The package that plays ``size``, and ``more`` sizes after it, or None.

    It is not verified, and ``request.sizes`` are not looked at.

    Considered are the packages that the request would build today, for whichever sizes: with the same weights,
    configs, compiler and sources. Preferred is the one whose greatest size is the least, since that decides what it
    takes of memory, and in TensorRT of time; so one of exactly ``size`` comes first. Raises as
    :func:`rtgen.build.plan.plan_build`, and StoreError.
    """
    plan = plan_build(replace(request, sizes=()))
    store, model, gpu = plan.store, plan.model.name, plan.gpu.name
    serving = [found for found in store.manifests(model, gpu) if serve_all(found.profiles, (size, *more))]
    for manifest in sorted(serving, key=lambda manifest: _rank(manifest, size)):
        path = store.find_package(model, gpu, manifest.key) if _is_of(plan, manifest) else None
        if path is not None:
            return FoundPackage(path, replace(request, sizes=sizes_of(plan.model, manifest.profiles)))
    return None


def _is_of(plan: BuildPlan, manifest: Manifest) -> bool:
    """Whether the plan leads to this package, given its sizes."""
    try:
        return plan.for_sizes(sizes_of(plan.model, manifest.profiles)).package_key == manifest.key
    except SizeError:  # the model's config has changed since
        return False
    except MissingDependencyError:  # without an exporter, only packages of the bundled graphs can be told
        return False


def _rank(manifest: Manifest, size: Size) -> tuple[int, bool, str]:
    """Less is better."""
    greatest = max(pixels(profile.max) for profile in manifest.profiles)
    is_tuned = any(profile.opt == size for profile in manifest.profiles)
    return greatest, not is_tuned, manifest.key
