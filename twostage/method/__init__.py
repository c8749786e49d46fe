"""The two stages, and the one loop that runs them."""
