"""Readers of published checkpoints: their files, their tensor names, and the conversion to rtgen's own layout."""
