"""All plugins, by the name of their node."""

from rtgen.plugins import kv_cache_attention, w4a4_linear
from rtgen.plugins.base import Plugin

PLUGINS: dict[str, Plugin] = {plugin.name: plugin for plugin in (kv_cache_attention.PLUGIN, w4a4_linear.PLUGIN)}
