"""Speed benchmarks: `python -m benchmarks.NAME`; the last line is JSON."""
