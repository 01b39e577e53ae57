"""Floor 2: compute, and what it buys."""
