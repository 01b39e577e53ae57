"""The training step, the loop, and everything else of a run."""
