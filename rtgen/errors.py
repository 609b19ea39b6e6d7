"""The exceptions rtgen raises on purpose.

Each carries one clear message, a hint that names the next thing to type, a stable machine-readable ``code`` and the
exit code of the command line (see docs/cli.md). ``rtgen.cli.errors`` maps foreign exceptions to the same form.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar


class RtgenError(Exception):
    """A failure with a message for people. Exit code 1 unless a subclass says otherwise."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(RtgenError):
    """The request itself is wrong: a bad option, name, size or prompt."""

    code = "usage"
    exit_code = 2


class UnknownNameError(UsageError):
    """A GPU, model or recipe that no config defines; the hint gives the nearest names."""

    code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"one of: {', '.join(names)}"
        super().__init__(f"unknown {kind} '{name}'", hint=f"{hint} (rtgen {kind} ls shows all)")


class ConfigError(UsageError):
    """A config file that does not hold what the schema asks for."""

    code = "config_invalid"


class SizeError(UsageError):
    """A frame size outside the resolution profiles."""

    code = "size_unsupported"


class PromptError(UsageError):
    """A prompt that cannot be used, such as an empty one."""

    code = "prompt_invalid"


class MissingDependencyError(RtgenError):
    """A part of rtgen that is not installed, or does not work, on this machine."""

    code = "environment"
    exit_code = 3


class NoGpuError(MissingDependencyError):
    """The package needs a GPU that this machine does not have."""

    code = "no_gpu"


class PackageMissingError(MissingDependencyError):
    """No engine package fits the request."""

    code = "package_missing"


class PackageInvalidError(RtgenError):
    """An engine package that is truncated, edited, or not one at all."""

    code = "package_invalid"


class PackageMismatchError(MissingDependencyError):
    """A sound package made for another compute capability or compiler version."""

    code = "package_mismatch"


class StoreError(RtgenError):
    """The store cannot be read or written."""

    code = "store"


class CheckpointError(RtgenError):
    """Weights that are missing, misshapen or not what they claim to be."""

    code = "weights_invalid"


class BuildError(RtgenError):
    """The compiler failed or its process died; ``log`` holds its last lines."""

    code = "build_failed"

    def __init__(self, message: str, *, hint: str | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.log = tuple(log)


class MemoryPlanError(RtgenError):
    """The model does not fit the GPU's memory."""

    code = "out_of_memory"


class OutputError(RtgenError):
    """The video cannot be written."""

    code = "output"
