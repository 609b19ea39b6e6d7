"""Post-training quantization: which numbers of a graph become small integers, and how they are stored."""
