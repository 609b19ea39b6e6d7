"""torch to ONNX, one file per component. The graphs hold standard ops and rtgen nodes, and no weights."""
