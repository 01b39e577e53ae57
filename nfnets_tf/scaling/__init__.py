"""Training compute, scaling laws, and sweeps with their report."""
