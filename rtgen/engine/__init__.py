"""Engines: TensorRT access, the builder and its worker process, the memory plan, the package format."""
