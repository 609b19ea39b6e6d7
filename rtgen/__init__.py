"""rtgen: compile autoregressive video diffusion for the GPU you own, and play it live."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtgen.runtime.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # `rtgen --help` must not pay for numpy and the backends.
    if name == "Pipeline":
        from rtgen.runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'rtgen' has no attribute '{name}'")
