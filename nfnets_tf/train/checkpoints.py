"""Saving and restoring the whole state of training."""

from __future__ import annotations

import logging

import tensorflow as tf

from nfnets_tf.models import naming
from nfnets_tf.ops.errors import UserError
from nfnets_tf.train.classifier import Classifier

LOGGER = logging.getLogger("nfnets_tf")


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
    self._used = None

  @property
  def latest(self) -> str | None:
    """Path of the checkpoint that was saved or restored last, or is the newest.

    None if there is none.
    """
    return self._used or self._manager.latest_checkpoint

  @property
  def latest_step(self) -> int | None:
    """Step of `latest`, None if there is none."""
    return int(self.latest.rsplit("-", 1)[1]) if self.latest else None

  @property
  def step(self) -> int:
    """Number of steps that the optimizer has made."""
    return int(self._iterations.numpy())

  def save(self) -> str:
    """Saves under the optimizer's step; returns the path."""
    self._used = self._manager.save(checkpoint_number=self.step)
    return self._used

  def restore(self) -> int:
    """Restores the newest checkpoint that is whole, if any; returns the step.

    Raises:
      UserError: if it does not hold exactly this state, or none is whole.
    """
    paths = self._manager.checkpoints[::-1]  # the newest first
    for path in paths:
      try:
        self._restore(path)
      except tf.errors.OpError as error:
        LOGGER.warning(
          "The checkpoint %s is damaged (%s); the one before it is used.",
          path,
          error.message.splitlines()[0],
        )
      else:
        self._used = path
        return self.step
    if paths:
      raise UserError(
        f"all {len(paths)} checkpoints are damaged, the newest is"
        f" {paths[0]!r}; restore one from a copy, or start anew in another"
        " --workdir."
      )
    return 0

  def _restore(self, path: str) -> None:
    try:
      # A sum over each tensor's bytes is compared.
      self._checkpoint.restore(path).assert_consumed()
    except (AssertionError, ValueError) as error:
      raise UserError(
        f"the checkpoint {path!r} does not fit this network and optimizer"
        f" ({str(error).splitlines()[0]}); use the configuration that made it,"
        " or another --workdir."
      ) from error
