"""The walk from configs to an engine package: what is asked for, its keys, and the stages that make it."""
