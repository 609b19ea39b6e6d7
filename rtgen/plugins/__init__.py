"""rtgen's operators: one file each, holding the schema, the function body of standard ONNX ops, and the torch op."""
