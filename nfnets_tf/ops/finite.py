"""Whether numbers are numbers: guards against steps that went wrong."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf


def all_finite(tensors: Iterable[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
  """Returns whether every element is finite, a scalar bool.

  Each tensor is summed, which reads it once and writes nothing; a sum that
  overflows counts as not finite.
  """
  sums = [
    tf.cast(tf.reduce_sum(getattr(tensor, "values", tensor)), tf.float32)
    for tensor in tensors
  ]
  return tf.reduce_all(tf.math.is_finite(tf.stack(sums)))
