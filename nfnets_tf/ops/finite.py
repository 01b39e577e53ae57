"""Checks tensors for NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf


def all_finite(tensors: Iterable[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
  """Returns whether every element of all tensors is finite.

  Each tensor is summed, which reads it once and writes nothing; a sum that
  overflows counts as not finite.

  Args:
    tensors: of any shape and floating type.

  Returns:
    A scalar bool.
  """
  sums = [
    tf.cast(tf.reduce_sum(getattr(tensor, "values", tensor)), tf.float32)
    for tensor in tensors
  ]
  return tf.reduce_all(tf.math.is_finite(tf.stack(sums)))
