"""What measures speed: `python -m benchmarks.NAME`; the last line is JSON."""
