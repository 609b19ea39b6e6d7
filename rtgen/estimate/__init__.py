"""How fast a model would run on a GPU, and in what memory, from counts and configs alone: no torch, no GPU."""
