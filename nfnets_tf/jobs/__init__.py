"""The jobs that `launch/train.py` can run, one a file."""
