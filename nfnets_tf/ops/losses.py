"""Softmax cross-entropy: the one place where labels are smoothed."""

import tensorflow as tf

from nfnets_tf.ops.errors import UserError


def softmax_cross_entropy(
  logits: tf.Tensor, labels: tf.Tensor, *, label_smoothing: float = 0.0
) -> tf.Tensor:
  """Cross-entropy of each example against smoothed labels.

  With smoothing s over C classes the target is (1 - s) * y + s / C, so the
  loss is (1 - s) * CE(y) + s * CE(uniform). It is computed in that form: an
  integer label never becomes a vector of C numbers.

  Args:
    logits: float [batch, classes].
    labels: integers [batch], or a distribution [batch, classes] such as mixed
      labels.
    label_smoothing: s, in [0, 1).

  Returns:
    Loss of each example in nats, float32 [batch].

  Raises:
    UserError: if the labels are neither; TensorFlow would stretch [batch, 1]
      over all classes without a word.
  """
  logits = tf.cast(logits, tf.float32)
  if labels.dtype.is_integer and labels.shape.rank == 1:
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
  elif labels.shape.rank != 2 or labels.shape[-1] != logits.shape[-1]:
    raise UserError(
      f"labels of shape {labels.shape} and {labels.dtype.name} do not fit"
      f" logits of shape {logits.shape}; expected integers [batch] or a"
      " distribution [batch, classes]."
    )
  else:
    loss = tf.nn.softmax_cross_entropy_with_logits(
      tf.cast(labels, tf.float32), logits
    )
  if not label_smoothing:
    return loss
  uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
  return (1.0 - label_smoothing) * loss + label_smoothing * uniform
