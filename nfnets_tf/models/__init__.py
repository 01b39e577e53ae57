"""Floor 1: the networks, their sizes, their cost and others' parameters."""
