"""Floor 2: the training step and the run around it."""
