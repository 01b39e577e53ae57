"""What a pass finds of every example, and the table that it travels in."""

from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.ops.losses import MixedLabels

COLUMNS = 4


class Findings(NamedTuple):
  """What a pass found, float32 [examples] each.

  Attributes:
    losses: cross-entropy, without the examples' weights.
    top1: 1 where the label's class has the largest logit.
    top5: 1 where it is among the five largest.
    weights: of the examples; 0 counts nowhere.
  """

  losses: tf.Tensor
  top1: tf.Tensor
  top5: tf.Tensor
  weights: tf.Tensor


def find(logits, labels, losses, weights=None) -> Findings:
  """Returns the findings of logits [examples, classes] and their labels."""
  if isinstance(labels, MixedLabels):
    labels = labels.main()
  elif labels.shape.rank == 2:
    labels = tf.argmax(labels, axis=-1)
  hits = (tf.math.in_top_k(labels, logits, k) for k in (1, 5))
  weights = tf.ones_like(losses) if weights is None else weights
  columns = (losses, *hits, weights)
  return Findings(*(tf.cast(column, tf.float32) for column in columns))


def to_table(found: Findings) -> tf.Tensor:
  """Returns findings as one tensor [examples, COLUMNS]."""
  return tf.stack(found, axis=1)


def from_table(table: tf.Tensor) -> Findings:
  """Returns the findings that `to_table` joined."""
  return Findings(*tf.unstack(table, COLUMNS, axis=1))
