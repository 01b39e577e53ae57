"""Saving and restoring the whole state of training."""

from __future__ import annotations

import tensorflow as tf

from nfnets_tf.models import naming
from nfnets_tf.ops.errors import UserError
from nfnets_tf.train.classifier import Classifier


class Checkpoints:
  """Checkpoints of a classifier: weights, averages, momentum, step, metrics.

  Args:
    directory: folder of the checkpoints.
    classifier: compiled; its optimizer's variables exist.
    keep: number of the newest checkpoints that stay.

  Attributes:
    metric_variables: of the metrics of an interval.
  """

  def __init__(self, directory: str, classifier: Classifier, *, keep: int):
    # Metrics restart at every interval, but a run may end within one.
    self.metric_variables = [
      variable for metric in classifier.metrics for variable in metric.variables
    ]
    self._checkpoint = tf.train.Checkpoint(
      metrics=self.metric_variables,
      parameters=naming.named_variables(classifier.network),
      averages=classifier.named_averages(),
      optimizer=classifier.optimizer,
    )
    self._manager = tf.train.CheckpointManager(
      self._checkpoint, directory, max_to_keep=keep, step_counter=None
    )
    self._iterations = classifier.optimizer.iterations

  @property
  def latest(self) -> str | None:
    """Path of the newest checkpoint, None if there is none."""
    return self._manager.latest_checkpoint

  @property
  def latest_step(self) -> int | None:
    """Step of the newest checkpoint, None if there is none."""
    return int(self.latest.rsplit("-", 1)[1]) if self.latest else None

  @property
  def step(self) -> int:
    """Number of steps that the optimizer has made."""
    return int(self._iterations.numpy())

  def save(self) -> str:
    """Saves under the optimizer's step; returns the path."""
    return self._manager.save(checkpoint_number=self.step)

  def restore(self) -> int:
    """Restores the newest checkpoint, if any; returns the step.

    Raises:
      UserError: if the checkpoint does not hold exactly this state.
    """
    if self.latest is None:
      return 0
    try:
      status = self._checkpoint.restore(self.latest)
      status.assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
      reason = str(error).splitlines()[0]
      raise UserError(
        f"the checkpoint {self.latest!r} does not fit this network and"
        f" optimizer ({reason}); use the configuration that made it, or another"
        " --workdir."
      ) from error
    return self.step
