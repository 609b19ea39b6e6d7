"""Whether a package fits the memory of its GPU, term by term, before and after its engines are built."""

from collections.abc import Iterable, Mapping

from rtgen.engine.manifest import Component, ComponentEntry, MemoryPlan, TensorEntry, tensor_bytes
from rtgen.errors import MemoryPlanError

MIB = 1 << 20
GIB = 1 << 30

CONTEXT_BYTES = 400 * MIB
"""An allowance, not a measurement: a CUDA context and the kernels that are loaded in it.

Published figures for a whole process with its libraries go from 300 MB to 1 GB
(https://nairr.readthedocs.io/en/latest/resource_guides/gpu_estimation.html). The lower part is taken because CUDA loads
only the kernels that run (https://docs.nvidia.com/cuda/cuda-programming-guide/04-special-topics/lazy-loading.html) and
rtgen loads neither cuBLAS nor cuDNN.
"""

TERMS: Mapping[str, str] = {
    "weights": "the weights",
    "activations": "the activations",
    "kv_ring": "the K/V ring",
    "decoder_state": "the decoder's state",
    "io": "inputs and outputs",
    "context": "the CUDA context",
}


def estimate(
    components: Mapping[Component, ComponentEntry],
    sizes: Mapping[str, int],
    *,
    weights: Mapping[Component, int],
    activations: Mapping[Component, int],
    share_activations: bool,
    vram: int,
    context: int = CONTEXT_BYTES,
) -> MemoryPlan:
    """Device memory of a package with all components resident, except those that run on the host.

    ``sizes`` gives the symbolic dimensions at the greatest profile. ``weights`` and ``activations`` are bytes by
    component: what the builder reported, or the caller's estimate before there is an engine. The text encoder counts
    although it runs once a prompt and could be released: changing the prompt while the video streams needs it. With
    ``share_activations`` the engines take turns in one arena for intermediate results, which is as large as the
    greatest of them asks for; else each has its own. All figures in bytes.

    Raises KeyError when ``sizes`` lacks a dimension, or a component lacks its figure.
    """
    components = {name: entry for name, entry in components.items() if entry.runs_on == "device"}
    states = {name: _state_bytes(component, sizes) for name, component in components.items()}
    demands = [activations[name] for name in components]
    return MemoryPlan(
        weights=sum(weights[name] for name in components),
        activations=max(demands, default=0) if share_activations else sum(demands),
        kv_ring=states.get("denoiser", 0),
        decoder_state=sum(count for name, count in states.items() if name != "denoiser"),
        io=sum(_io_bytes(component, sizes) for component in components.values()),
        context=context,
        vram=vram,
    )


def activations_at(activations: int, reference: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    """Activation bytes at other sizes, given those at ``reference``: proportional to the tokens of a frame.

    Attention is fused, so no intermediate result grows with the square of the tokens.
    """
    return activations * sizes["rows"] * sizes["columns"] // (reference["rows"] * reference["columns"])


def describe(plan: MemoryPlan) -> list[tuple[str, int]]:
    """The terms as (name for people, bytes), largest first."""
    terms = [(title, int(getattr(plan, name))) for name, title in TERMS.items()]
    return sorted(terms, key=lambda term: term[1], reverse=True)


def check(plan: MemoryPlan, *, alternatives: Mapping[str, MemoryPlan]) -> None:
    """Refuse a plan that exceeds the GPU's memory.

    ``alternatives`` maps what the user could type, such as ``--size 320x576``, to the plan it would give, best first;
    the hint names those that fit. Raises MemoryPlanError.
    """
    if plan.total <= plan.vram:
        return
    title, largest = describe(plan)[0]
    message = (
        f"needs {_gib(plan.total, up=True)} GiB of {_gib(plan.vram)} GiB; "
        f"the largest term is {title} with {_gib(largest)} GiB"
    )
    fitting = [setting for setting, other in alternatives.items() if other.total <= other.vram]
    hint = f"this fits: {' or '.join(fitting[:3])}" if fitting else "choose a GPU with more memory: rtgen gpu ls"
    raise MemoryPlanError(message, hint=hint)


def _gib(count: int, *, up: bool = False) -> str:
    # Rounding up keeps "needs 8.0 GiB of 8.0 GiB" from being said.
    return f"{count / GIB + (0.049 if up else 0):.1f}"


def _state_bytes(component: ComponentEntry, sizes: Mapping[str, int]) -> int:
    """Bytes of the tensors that live between runs: one buffer if updated in place, two if they swap."""
    inputs, outputs = _by_name(component.inputs), _by_name(component.outputs)
    total = 0
    for state in component.states:
        total += tensor_bytes(inputs[state.input], sizes)
        if state.update == "swap":
            total += tensor_bytes(outputs[state.output], sizes)
    return total


def _io_bytes(component: ComponentEntry, sizes: Mapping[str, int]) -> int:
    kept = {state.input for state in component.states} | {state.output for state in component.states}
    tensors = (*component.inputs, *component.outputs)
    return sum(tensor_bytes(tensor, sizes) for tensor in tensors if tensor.name not in kept)


def _by_name(tensors: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    return {tensor.name: tensor for tensor in tensors}
