"""The fidelity report: how far the clips of a quantized model lie from those of the unquantized one."""
