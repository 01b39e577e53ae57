"""Skips training steps whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops.finite import all_finite
from nfnets_tf.optim.param_groups import GroupedOptimizer


class NonfiniteGuard:
  """Decides on all replicas alike whether a step is skipped.

  Branch-free: replicas exchange values through `merge_call`, which TensorFlow
  forbids inside `tf.cond`. To be created under the strategy's scope.

  Args:
    optimizer: sums the gradients over replicas. `nfnets_tf.SGD` skips a
      non-finite step itself, momentum included; any other optimizer receives a
      gradient of zeros, under which its own state still moves.

  Attributes:
    consecutive_skips: number of steps skipped since the last finite one, an
      int64 scalar variable.
  """

  def __init__(self, optimizer: keras.optimizers.Optimizer):
    self._optimizer = optimizer
    self._zeroes = not (
      isinstance(optimizer, GroupedOptimizer) and optimizer.skips_nonfinite
    )
    self.consecutive_skips = tf.Variable(
      0,
      trainable=False,
      dtype=tf.int64,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="consecutive_skips",
    )

  def reduce_gradients(
    self,
    gradients: Sequence[tf.Tensor],
    losses: Sequence[tf.Tensor],
    variables: Sequence[tf.Variable],
  ) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Sums gradients over replicas and counts the step if it is skipped.

    Args:
      gradients: of this replica, each of the shape of its variable.
      losses: of this replica's examples, float [examples] for each pass.
      variables: the trainable weights, parallel to `gradients`.

    Returns:
      (summed gradients, whether all gradients and losses of all replicas are
      finite, a scalar bool), the same on all replicas.
    """
    gradients = list(gradients)
    # A NaN added to the smallest gradient carries a bad loss to all replicas
    # with the sum that is made anyway, at no further communication.
    smallest = min(
      range(len(gradients)), key=lambda i: gradients[i].shape.num_elements()
    )
    poison = tf.where(all_finite(losses), 0.0, float("nan"))
    gradients[smallest] += tf.cast(poison, gradients[smallest].dtype)
    pairs = self._optimizer.aggregate_gradients(zip(gradients, variables))
    gradients = [gradient for gradient, _ in pairs]
    finite = all_finite(gradients)
    skips = self.consecutive_skips.read_value() + 1
    self.consecutive_skips.assign(tf.where(finite, tf.zeros_like(skips), skips))
    if self._zeroes:
      gradients = [tf.where(finite, g, tf.zeros_like(g)) for g in gradients]
    return gradients, finite
