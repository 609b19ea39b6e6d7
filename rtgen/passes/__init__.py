"""ONNX graph passes on onnx-ir: one file, one pass, one test."""
