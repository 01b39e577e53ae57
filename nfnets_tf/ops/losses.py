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


def check_labels(
  shape: tf.TensorShape | tuple, dtype: tf.DType, num_classes: int
) -> None:
  """Raises a UserError unless labels can be those of a classifier.

  Args:
    shape: of the labels; sizes may be unknown.
    dtype: of the labels.
    num_classes: of the classifier.
  """
  shape, dtype = tf.TensorShape(shape), tf.as_dtype(dtype)
  numeric = dtype.is_integer or dtype.is_floating or dtype.is_bool
  fits = shape.rank in (None, 1) or (
    shape.rank == 2 and shape[1] in (None, 1, num_classes)
  )
  if numeric and fits:
    return
  mend = (
    "" if numeric else ", such as np.unique(labels, return_inverse=True)[1]"
  )
  raise UserError(
    f"labels of shape {shape} and {dtype.name} do not fit a network of"
    f" {num_classes} classes; expected whole numbers [examples] or [examples,"
    f" 1]{mend}, or one-hot or soft labels [examples, {num_classes}]."
  )


def canonical_labels(
  labels: tf.Tensor | MixedLabels, num_classes: int
) -> tf.Tensor | MixedLabels:
  """Returns labels in one of the forms that `softmax_cross_entropy` takes.

  Args:
    labels: classes [batch] or [batch, 1], of any integer type, bool, or floats
      that are whole numbers; one-hot or soft labels [batch, num_classes] of any
      type; or `MixedLabels`. With one class, floats [batch, 1] are soft labels.
    num_classes: of the logits.

  Returns:
    int32 or int64 [batch], float [batch, num_classes], or `MixedLabels`; int32
    and int64 [batch] and floats [batch, num_classes] as they are.

  Raises:
    UserError: if the labels have another type or shape.
  """
  if isinstance(labels, MixedLabels):
    return labels
  check_labels(labels.shape, labels.dtype, num_classes)
  if labels.shape.rank == 1:
    return _class_indices(labels)
  columns = labels.shape[1]
  if columns is None:  # of a generator, or of calls with labels of two forms
    dense = tf.cond(
      tf.equal(tf.shape(labels)[1], 1) & (num_classes > 1),
      lambda: _one_hot(labels[:, 0], num_classes),
      lambda: tf.cast(labels, tf.float32),
    )
    return tf.ensure_shape(dense, [None, num_classes])
  if columns == num_classes and (columns > 1 or labels.dtype.is_floating):
    return labels if labels.dtype.is_floating else tf.cast(labels, tf.float32)
  return _class_indices(tf.squeeze(labels, axis=1))


def _class_indices(labels):
  """Returns labels [batch] as int32 or int64."""
  if labels.dtype in (tf.int32, tf.int64):
    return labels
  if not labels.dtype.is_floating:
    wide = labels.dtype in (tf.uint32, tf.uint64)
    return tf.cast(labels, tf.int64 if wide else tf.int32)
  whole = tf.cast(labels, tf.int32)
  checks = [
    tf.debugging.assert_equal(
      tf.cast(whole, labels.dtype),
      labels,
      "labels are fractions; expected whole numbers, the classes of examples.",
    )
  ]
  with tf.control_dependencies(checks):
    return tf.identity(whole)


def _one_hot(labels, num_classes):
  """Returns float32 [batch, num_classes] of labels [batch]."""
  indices = _class_indices(labels)
  check = tf.debugging.assert_less(
    tf.cast(tf.reduce_max(indices), tf.int64),
    tf.constant(num_classes, tf.int64),
    f"a label is not one of the {num_classes} classes.",
  )
  with tf.control_dependencies([check]):
    return tf.one_hot(indices, num_classes)


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
      broadcast [batch, 1] over all classes, which `canonical_labels` mends.
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
