"""Animated postcards: a grammar of scenes and a procedural renderer for them."""
