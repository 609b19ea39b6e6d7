"""The torch backend: packages of weights, run by the models' own modules on CUDA GPUs and on the processor."""
