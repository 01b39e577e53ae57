"""Metrics of training: per example, and averaged over an interval.

The averages are Keras metrics, which add up over replicas on the devices, so
that nothing reaches the host between two intervals.

A new metric of a step takes three files: here (made in `Telemetry.__init__`,
updated in `Telemetry.update`), the list of metrics in docs/reliability.md, and
tests/train/metrics_test.py. metrics.jsonl, TensorBoard and checkpoints pick up
every member of `Telemetry.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops.losses import MixedLabels
from nfnets_tf.optim.param_groups import GroupedOptimizer
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.unitwise import StepNorms


class ExampleMetrics(NamedTuple):
  """Metrics of each example of a forward pass, float32 [examples] each.

  Attributes:
    losses: cross-entropy in nats, not multiplied by `weights`.
    top1: 1 if the label's class has the largest logit, else 0.
    top5: 1 if it is among the five largest, else 0.
    weights: of the examples; one of weight 0 does not count as an example.
  """

  losses: tf.Tensor
  top1: tf.Tensor
  top5: tf.Tensor
  weights: tf.Tensor

  def pack(self) -> tf.Tensor:
    """Returns the metrics as one tensor [examples, NUM_EXAMPLE_METRICS]."""
    return tf.stack(self, axis=1)

  @classmethod
  def unpack(cls, packed: tf.Tensor) -> ExampleMetrics:
    """Returns the metrics that `pack` gave [examples, NUM_EXAMPLE_METRICS]."""
    return cls(*tf.unstack(packed, NUM_EXAMPLE_METRICS, axis=1))

  def masked(self, keep: tf.Tensor) -> ExampleMetrics:
    """Returns the same, or losses and weights of 0 unless `keep` (a scalar)."""
    # Weights are not enough: 0 * NaN is NaN.
    return self._replace(
      losses=tf.where(keep, self.losses, 0.0),
      weights=tf.where(keep, self.weights, 0.0),
    )


NUM_EXAMPLE_METRICS = len(ExampleMetrics._fields)


def packed_array(count, rows) -> tf.TensorArray:
  """Returns an array for `count` results of `ExampleMetrics.pack`.

  Args:
    count: an integer or an integer scalar tensor.
    rows: examples of each, likewise.
  """
  shape = [rows if isinstance(rows, int) else None, NUM_EXAMPLE_METRICS]
  return tf.TensorArray(
    tf.float32, count, infer_shape=False, element_shape=shape
  )


def compute_example_metrics(
  logits: tf.Tensor,
  labels: tf.Tensor | MixedLabels,
  losses: tf.Tensor,
  weights: tf.Tensor | None = None,
) -> ExampleMetrics:
  """Compares logits with labels.

  Args:
    logits: float [examples, classes].
    labels: integers [examples], `MixedLabels`, or distributions [examples,
      classes]; top-1 and top-5 are those of the most likely class.
    losses: float [examples].
    weights: float [examples]; None is 1 for each.
  """
  if isinstance(labels, MixedLabels):
    labels = labels.main()
  elif labels.shape.rank == 2:
    labels = tf.argmax(labels, axis=-1)
  hits = (tf.math.in_top_k(labels, logits, k) for k in (1, 5))
  weights = tf.ones_like(losses) if weights is None else weights
  columns = (losses, *hits, weights)
  return ExampleMetrics(*(tf.cast(column, tf.float32) for column in columns))


@keras.saving.register_keras_serializable(package="nfnets_tf")
class MeanLoss(keras.metrics.Mean):
  """The loss of an interval's examples: sum(weight * loss) / their number.

  An example of weight 0 does not count, other weights do not change the number:
  what a training step minimizes, and what Keras' losses return but for examples
  of weight 0, which they count. It is 0 without examples.
  """

  def update(self, examples: ExampleMetrics) -> None:
    """Adds examples, float32 [examples] each."""
    self.update_state(
      examples.losses * examples.weights, tf.not_equal(examples.weights, 0.0)
    )


def count_examples(weights: tf.Tensor) -> tf.Tensor:
  """Returns [those of a weight other than 0, all], float32 [2].

  Args:
    weights: of the examples, float [examples].
  """
  valid = tf.cast(tf.not_equal(weights, 0.0), tf.float32)
  return tf.stack([tf.reduce_sum(valid), tf.reduce_sum(tf.ones_like(valid))])


def mean_over_valid(
  gradients: Sequence[tf.Tensor], counts: tf.Tensor
) -> list[tf.Tensor]:
  """Turns gradients of a mean over all examples into one over those that count.

  Args:
    gradients: of any shape.
    counts: result of `count_examples`, summed over replicas.

  Returns:
    The gradients, bit for bit if all examples count.
  """
  valid, examples = tf.unstack(counts)
  scale = examples / tf.maximum(valid, 1.0)
  return [gradient * tf.cast(scale, gradient.dtype) for gradient in gradients]


class Scores:
  """Mean loss, top-1 and top-5 over the examples of an interval.

  The loss is a `MeanLoss`; top-1 and top-5 are weighted means, sum(weight *
  hit) / sum(weight), and so stay in [0, 1] under any weights.

  Attributes:
    metrics: the Keras metrics.
  """

  def __init__(self):
    self._loss, self._top1, self._top5 = self.metrics = [
      MeanLoss(name="loss"),
      keras.metrics.Mean(name="top1"),
      keras.metrics.Mean(name="top5"),
    ]

  def update(self, examples: ExampleMetrics) -> None:
    """Adds examples, float32 [examples] each."""
    self._loss.update(examples)
    self._top1.update_state(examples.top1, examples.weights)
    self._top5.update_state(examples.top5, examples.weights)

  def results(self) -> dict[str, tf.Tensor]:
    """Returns {name: mean, a float32 scalar}."""
    return {metric.name: metric.result() for metric in self.metrics}


class Telemetry:
  """Mean per-step quantities: gradient norm, clipping, SAM, skipped steps.

  Means over an interval, named

    gradient_norm       of the whole gradient, before clipping
    clipped             fraction of all units that AGC clips, in [0, 1]
    clipped_STAGE       the same within one stage of the network
    invalid_examples    fraction of the examples that had weight 0
    skipped_steps       fraction of the steps that were not finite
    sam_active          fraction of the steps that SAM perturbed
    perturbed_loss      at SAM's perturbed weights, in nats; a `MeanLoss`

  Skipped steps enter `skipped_steps` and `invalid_examples` only.

  Args:
    variables: the trainable weights.
    optimizer: says which units are clipped, if it is a `GroupedOptimizer`:
      `nfnets_tf.SGD` or `nfnets_tf.AGC`.
    sam: of the training step, or None.
    stages: {name of a stage: its variables}.

  Attributes:
    metrics: the Keras metrics.
  """

  def __init__(
    self,
    variables: Sequence[tf.Variable],
    optimizer: keras.optimizers.Optimizer,
    sam: SAM | None = None,
    *,
    stages: Mapping[str, Sequence[tf.Variable]] | None = None,
  ):
    grouped = isinstance(optimizer, GroupedOptimizer)
    clips = grouped and optimizer.clipping is not None
    stage_of = {
      id(variable): stage
      for stage, members in (stages or {}).items()
      for variable in members
    }
    self._stages = [stage_of.get(id(variable)) for variable in variables]
    self._gradient_norm = keras.metrics.Mean(name="gradient_norm")
    self._invalid_examples = keras.metrics.Mean(name="invalid_examples")
    self._skipped_steps = keras.metrics.Mean(name="skipped_steps")
    self.metrics = [
      self._gradient_norm,
      self._invalid_examples,
      self._skipped_steps,
    ]
    self._clipped = {}  # by stage; None is the whole network
    if clips:
      for stage in (None, *dict.fromkeys(filter(None, self._stages))):
        name = "clipped" if stage is None else f"clipped_{stage}"
        self._clipped[stage] = keras.metrics.Mean(name=name)
      self.metrics += self._clipped.values()
    self._perturbed_loss = self._sam_active = None
    if sam is not None:
      self._perturbed_loss = MeanLoss(name="perturbed_loss")
      self._sam_active = keras.metrics.Mean(name="sam_active")
      self.metrics += [self._perturbed_loss, self._sam_active]

  def update(
    self,
    step: StepNorms,
    *,
    weights: tf.Tensor | None = None,
    perturbed: ExampleMetrics | None = None,
    sam_active: tf.Tensor | None = None,
  ) -> None:
    """Adds a step; called in a replica context.

    Args:
      step: of the gradients of all trainable weights, not clipped.
      weights: of this replica's examples, float [examples]; None is 1 for each.
      perturbed: with SAM, of this replica's examples at the perturbed weights.
      sam_active: with SAM, 1.0 if the step was perturbed, else 0.0 (a scalar).
    """
    # The metrics sum over replicas. So that a step weighs 1 on any number of
    # them, which may change within an interval, each adds its share.
    step_weight = 1.0 / tf.distribute.get_strategy().num_replicas_in_sync
    counted = step_weight * tf.cast(step.finite, tf.float32)
    skipped = 1.0 - tf.cast(step.finite, tf.float32)
    self._skipped_steps.update_state(skipped, step_weight)
    # A NaN of weight 0 would still make the mean NaN.
    norm = tf.where(step.finite, tf.linalg.global_norm(step.norms), 0.0)
    self._gradient_norm.update_state(norm, counted)
    invalid = 0.0 if weights is None else tf.equal(weights, 0.0)
    self._invalid_examples.update_state(invalid)
    if self._clipped:
      self._count_clipped(step.scales, counted)
    if self._perturbed_loss is not None:
      self._perturbed_loss.update(perturbed)
      self._sam_active.update_state(sam_active, counted)

  def _count_clipped(self, scales, weight) -> None:
    units = {stage: [] for stage in self._clipped}
    for scale, stage in zip(scales, self._stages):
      if scale is not None:
        for key in {None, stage}:
          units[key].append(tf.reshape(scale, [-1]))
    for stage, metric in self._clipped.items():
      if units[stage]:
        clipped = tf.concat(units[stage], axis=0) < 1.0
        fraction = tf.reduce_mean(tf.cast(clipped, tf.float32))
        metric.update_state(fraction, weight)

  def results(self) -> dict[str, tf.Tensor]:
    """Returns {name: mean, a float32 scalar}.

    perturbed_loss is NaN if no step of the interval was perturbed.
    """
    means = {metric.name: metric.result() for metric in self.metrics}
    if self._perturbed_loss is not None:
      loss, active = means["perturbed_loss"], means["sam_active"]
      means["perturbed_loss"] = tf.where(active > 0, loss, float("nan"))
    return means
