"""Steps whose loss or gradient is not finite are left out, on all replicas."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.ops.finite import all_finite
from nfnets_tf.train.findings import Findings
from nfnets_tf.train.gradients import StepGradient


class Guard:
  """Decides whether a step counts; without a branch, for `merge_call`'s sake.

  To be made where variables are made, under a strategy's scope.

  Args:
    optimizer: sums the gradients. Our `SGD` leaves such a step out by itself;
      for another one the gradient counts as zero, and its momentum still moves.

  Attributes:
    in_a_row: number of steps that were left out since the last good one, an
      int64 variable.
  """

  def __init__(self, optimizer: keras.optimizers.Optimizer):
    self._optimizer = optimizer
    self._zeroes = not getattr(optimizer, "leaves_out_nonfinite", False)
    self.in_a_row = tf.Variable(
      0,
      trainable=False,
      dtype=tf.int64,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="left_out_in_a_row",
    )

  def summed(
    self, taken: StepGradient, variables: Sequence[tf.Variable]
  ) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Sums a step's gradients over replicas, and counts if it is left out.

    Args:
      taken: this replica's share.
      variables: the weights.

    Returns:
      (gradients, whether the step counts): the same on all replicas.
    """
    gradients = list(taken.gradients)
    # What one replica finds wrong reaches all others with the gradients.
    smallest = min(
      range(len(gradients)), key=lambda i: gradients[i].shape.num_elements()
    )
    losses = [f.losses for f in (taken.clean, taken.perturbed) if f is not None]
    wrong = tf.where(all_finite(losses), 0.0, float("nan"))
    gradients[smallest] += tf.cast(wrong, gradients[smallest].dtype)
    pairs = self._optimizer.aggregate_gradients(zip(gradients, variables))
    gradients = [gradient for gradient, _ in pairs]
    finite = all_finite(gradients)
    count = self.in_a_row.read_value() + 1
    self.in_a_row.assign(tf.where(finite, tf.zeros_like(count), count))
    if self._zeroes:
      gradients = [tf.where(finite, g, tf.zeros_like(g)) for g in gradients]
    return gradients, finite


def counted(taken: StepGradient, finite: tf.Tensor) -> StepGradient:
  """Returns a step's findings such that they count only if `finite`."""
  return taken._replace(
    clean=_counted(taken.clean, finite),
    perturbed=taken.perturbed and _counted(taken.perturbed, finite),
  )


def _counted(found: Findings, finite: tf.Tensor) -> Findings:
  return found._replace(
    losses=tf.where(finite, found.losses, 0.0),
    weights=tf.where(finite, found.weights, 0.0),
  )
