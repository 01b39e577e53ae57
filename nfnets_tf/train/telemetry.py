"""Running means of what a training step tells: loss, accuracy, clipping.

Keras metrics, so that replicas are put together and nothing reaches the host
between intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.nfnet import variables_by_stage
from nfnets_tf.optim.adaptive_clipping import max_gradient_norm, unitwise_norm
from nfnets_tf.optim.param_groups import group_of
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.findings import Findings
from nfnets_tf.train.gradients import StepGradient


class Scores:
  """Loss, top-1 and top-5 of the examples of an interval or an evaluation."""

  def __init__(self):
    self.loss = keras.metrics.Mean(name="loss")
    self.top1 = keras.metrics.Mean(name="top1")
    self.top5 = keras.metrics.Mean(name="top5")

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """All of them."""
    return [self.loss, self.top1, self.top5]

  def update(self, found: Findings) -> None:
    """Adds the examples of a pass, each by its weight."""
    self.loss.update_state(found.losses, found.weights)
    self.top1.update_state(found.top1, found.weights)
    self.top5.update_state(found.top5, found.weights)

  def results(self) -> dict[str, tf.Tensor]:
    """Returns {name: mean}."""
    return {metric.name: metric.result() for metric in self.metrics}


class Telemetry:
  """How training goes: gradient norm, units clipped, SAM, unused examples.

  Args:
    network: whose trainable weights are meant, by part if it is an `NFNet`.
    optimizer: units are counted by its `clipping` and `clipping_eps`, if it has
      them.
    sam: of the training step, or None.
  """

  def __init__(
    self,
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    sam: SAM | None,
  ):
    self._clipping = getattr(optimizer, "clipping", None)
    self._eps = getattr(optimizer, "clipping_eps", None)
    self._names = _part_names(network)
    self._gradient_norm = keras.metrics.Mean(name="gradient_norm")
    self._unused = keras.metrics.Mean(name="unused")
    self._left_out = keras.metrics.Mean(name="left_out")
    self.metrics = [self._gradient_norm, self._unused, self._left_out]
    self._clipped = {}
    if self._clipping is not None:
      names = dict.fromkeys(name for name in self._names if name)
      for name in (None, *names):
        title = "clipped" if name is None else f"clipped_{name}"
        self._clipped[name] = keras.metrics.Mean(name=title)
      self.metrics += self._clipped.values()
    self._perturbed_loss = self._active = None
    if sam is not None:
      self._perturbed_loss = keras.metrics.Mean(name="perturbed_loss")
      self._active = keras.metrics.Mean(name="sam_active")
      self.metrics += [self._perturbed_loss, self._active]

  def update(
    self,
    variables: Sequence[tf.Variable],
    gradients: Sequence[tf.Tensor],
    taken: StepGradient,
    weights: tf.Tensor | None,
    finite: tf.Tensor | bool = True,
  ) -> None:
    """Adds a step.

    Args:
      variables: the weights before their update.
      gradients: summed over replicas, before clipping.
      taken: the replica's own passes.
      weights: of its examples; None is 1 for each.
      finite: whether the step counts.
    """
    # A step weighs 1 on any number of replicas, which may change within an
    # interval.
    weight = 1.0 / tf.distribute.get_strategy().num_replicas_in_sync
    counts = weight * tf.cast(finite, tf.float32)
    self._left_out.update_state(1.0 - tf.cast(finite, tf.float32), weight)
    norms = [unitwise_norm(gradient) for gradient in gradients]
    norm = tf.where(finite, tf.linalg.global_norm(norms), 0.0)
    self._gradient_norm.update_state(norm, counts)
    unused = 0.0 if weights is None else tf.equal(weights, 0.0)
    self._unused.update_state(unused)
    if self._clipping is not None:
      self._count_clipped(variables, norms, counts)
    if self._perturbed_loss is not None:
      found = taken.perturbed
      self._perturbed_loss.update_state(found.losses, found.weights)
      self._active.update_state(taken.active, counts)

  def _count_clipped(self, variables, norms, weight) -> None:
    counts = {name: [] for name in self._clipped}
    units = dict.fromkeys(self._clipped, 0)
    for variable, norm, name in zip(variables, norms, self._names):
      if not group_of(variable).clipped:
        continue
      largest = max_gradient_norm(
        variable, clipping=self._clipping, eps=self._eps
      )
      count = tf.math.count_nonzero(norm > largest, dtype=tf.float32)
      for key in {None, name}:
        counts[key].append(count)
        units[key] += norm.shape.num_elements()
    for key, metric in self._clipped.items():
      if units[key]:
        metric.update_state(tf.add_n(counts[key]) / units[key], weight)

  def results(self) -> dict[str, tf.Tensor]:
    """Returns {name: mean}; not a number if no step was perturbed."""
    means = {metric.name: metric.result() for metric in self.metrics}
    if self._perturbed_loss is not None:
      loss, active = means["perturbed_loss"], means["sam_active"]
      means["perturbed_loss"] = tf.where(active > 0, loss, float("nan"))
    return means


def _part_names(network: keras.Model) -> list[str | None]:
  """Returns the part that each weight belongs to, None if to no part."""
  names = {
    id(variable): name
    for name, members in variables_by_stage(network).items()
    for variable in members
  }
  return [names.get(id(v)) for v in network.trainable_variables]
