"""A replica's share of a batch, and its parts."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.errors import UserError


def check_parts(examples: int, micro_batches: int) -> None:
  """Raises a UserError unless a replica's batch divides into equal parts."""
  if not isinstance(micro_batches, int) or micro_batches < 1:
    raise UserError(
      f"Classifier.micro_batches = {micro_batches!r} cannot be used; bind it to"
      " a whole number of at least 1."
    )
  if examples % micro_batches:
    raise UserError(
      f"{examples} examples a replica do not divide into {micro_batches}"
      " micro-batches; choose another batch size or number, and"
      " drop_remainder=True where a data set is batched."
    )


def place_in_batch(
  examples: tf.Tensor, replicas: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Finds a replica's share in a batch that is not shared evenly.

  To be called in a replica context.

  Args:
    examples: of this replica.
    replicas: how many there are.

  Returns:
    (number of the share's first example, examples of the whole batch), such
    that even a share without examples lies within the batch.
  """
  context = tf.distribute.get_replica_context()
  replica = context.replica_id_in_sync_group
  own = tf.one_hot(replica, replicas, dtype=tf.int32) * examples
  shares = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
  whole = tf.maximum(tf.reduce_sum(shares), 1)
  first = tf.math.cumsum(shares, exclusive=True)[replica]
  return tf.minimum(first, whole - 1), whole


def never_empty(
  data: Sequence[tf.Tensor], examples: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
  """Gives a replica without examples one of weight 0.

  TensorFlow's convolutions on a CPU fail on nothing.

  Args:
    data: images, labels and perhaps weights, of `examples` each.
    examples: how many.

  Returns:
    Images, labels and weights, and how many they are now.
  """
  weights = data[2] if len(data) > 2 else tf.ones([examples])
  missing = tf.maximum(1 - examples, 0)

  def fill(tensor):
    padding = [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)
    return tf.pad(tensor, padding)

  full = tf.nest.map_structure(fill, [*data[:2], weights])
  return full, examples + missing


def cut(tensor: tf.Tensor, start, size) -> tf.Tensor:
  """Returns `size` examples from `start` on, of a known shape if it can be."""
  begin = [start] + [0] * (tensor.shape.rank - 1)
  shape = tf.concat([[size], tf.shape(tensor)[1:]], axis=0)
  known = size if isinstance(size, int) else None
  return tf.ensure_shape(
    tf.slice(tensor, begin, shape), [known, *tensor.shape[1:]]
  )
