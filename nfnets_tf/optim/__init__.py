"""Optimizers, adaptive gradient clipping, SAM, schedules and averages."""
