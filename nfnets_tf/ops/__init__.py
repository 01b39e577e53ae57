"""Floor 0: pure functions and marks; imports nothing of the project."""
