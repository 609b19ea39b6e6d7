"""The runtime wing: plays engine packages. Imports no torch and no onnx."""
