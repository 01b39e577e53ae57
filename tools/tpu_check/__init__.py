"""Compiles the training step of a run for TPU-v4 slices, without a TPU.

Two processes share the work: TensorFlow traces and lowers the step in the
environment of the project, and JAX's libraries, in an environment of their own
(`setup`), compile or run what it has written. docs/tpu.md says what that
proves.
"""
