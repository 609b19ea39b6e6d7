"""All plugins, by the name of their node."""

from rtgen.plugins import attention_conv, kv_cache_attention, quantized_kv_cache_attention, w4a4_linear
from rtgen.plugins.base import Plugin

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin
    for plugin in (
        attention_conv.PLUGIN,
        kv_cache_attention.PLUGIN,
        quantized_kv_cache_attention.PLUGIN,
        w4a4_linear.PLUGIN,
        w4a4_linear.GATED,
    )
}
