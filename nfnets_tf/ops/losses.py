"""Softmax cross-entropy with label smoothing, also of mixed images."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.errors import UserError


class MixedLabels(NamedTuple):
  """Labels of images that were mixed from two, without a dense vector.

  Attributes:
    first: of the first image, integers [batch].
    second: of the second image, integers [batch].
    fraction: weight of the first, float32 [batch] in [0, 1]; the second has the
      rest.
  """

  first: tf.Tensor
  second: tf.Tensor
  fraction: tf.Tensor

  def main(self) -> tf.Tensor:
    """Returns the label of the larger weight, integers [batch]."""
    return tf.where(self.fraction >= 0.5, self.first, self.second)


def softmax_cross_entropy(
  logits: tf.Tensor,
  labels: tf.Tensor | MixedLabels,
  *,
  label_smoothing: float = 0.0,
) -> tf.Tensor:
  """Returns the cross-entropy of each example against smoothed labels.

  With smoothing s over C classes the target is (1 - s) * y + s / C, so the
  loss is (1 - s) * CE(y) + s * CE(uniform). It is computed in that form: an
  integer label never becomes a vector of C numbers.

  Args:
    logits: float [batch, classes].
    labels: integers [batch], `MixedLabels`, or a distribution [batch, classes].
    label_smoothing: s, in [0, 1).

  Returns:
    Loss of each example in nats, float32 [batch].

  Raises:
    UserError: if the labels have another shape; TensorFlow would silently
      broadcast [batch, 1] over all classes.
  """
  logits = tf.cast(logits, tf.float32)
  loss = _cross_entropy(logits, labels)
  if not label_smoothing:
    return loss
  uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
  return (1.0 - label_smoothing) * loss + label_smoothing * uniform


def _cross_entropy(logits, labels):
  if isinstance(labels, MixedLabels):
    first, second = (_cross_entropy(logits, some) for some in labels[:2])
    return second + labels.fraction * (first - second)
  if labels.dtype.is_integer and labels.shape.rank == 1:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
  if labels.shape.rank != 2 or labels.shape[-1] != logits.shape[-1]:
    raise UserError(
      f"labels of shape {labels.shape} and {labels.dtype.name} do not fit"
      f" logits of shape {logits.shape}; expected integers [batch] or a"
      " distribution [batch, classes]."
    )
  return tf.nn.softmax_cross_entropy_with_logits(
    tf.cast(labels, tf.float32), logits
  )
