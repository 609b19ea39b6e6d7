"""Schemas of the files under ``configs/`` and how they are found and loaded."""
