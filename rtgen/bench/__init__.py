"""Measurements: how fast rtgen is beside what people use today, and what figures that cannot be measured come to."""
