"""The loss of each model family beside that of diffusers' own training script for it; see `__main__`."""
