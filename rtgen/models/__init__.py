"""The torch models: causal video DiT, causal autoencoder, text encoder. Configs decide which member of the family."""
