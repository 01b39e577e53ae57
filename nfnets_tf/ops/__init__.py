"""Pure functions on tensors, and seeded random numbers."""
