"""Which settings wait for a kernel that rtgen does not have yet."""

from rtgen.config.locate import data_directory
from rtgen.estimate.setting import Setting

LINEAR = "w4a4_linear.cu"
ATTENTION = "kv_cache_attention.cu"
"""Sources in ``plugins/``: a plugin has a kernel once its source is there."""


def has_kernel(source: str) -> bool:
    """Whether the plugins of this rtgen include the kernel."""
    return (data_directory("plugins") / source).is_file()


def planned(setting: Setting) -> tuple[str, ...]:
    """What of a setting rtgen cannot run as it is reckoned, each in words; empty if all of it can be built today."""
    reasons = []
    quantization = setting.recipe.quantization
    activations = None if quantization is None else quantization.activations
    if activations is not None and activations.format == "int4" and not has_kernel(LINEAR):
        reasons.append(
            f"recipe {setting.recipe.name}: no kernel yet for INT4 activations; "
            "what is built today computes them by other layers, slower than fp16"
        )
    if setting.kv_bits < setting.precision_bits and not has_kernel(ATTENTION):
        reasons.append(f"K/V ring of {setting.kv_bits} bits: no kernel yet; what is built today keeps 16 bits")
    return tuple(reasons)
