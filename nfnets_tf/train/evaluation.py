"""Held-out metrics of a run, of its raw and of its averaged weights."""

from __future__ import annotations

import math

from nfnets_tf.train.classifier import Classifier


class Evaluation:
  """Evaluates a classifier on the whole held-out split.

  Args:
    classifier: compiled.
    batches: distributed, `steps` of them hold the split.
    steps: number of batches.
    callbacks: for Keras' `evaluate`.
  """

  def __init__(self, classifier: Classifier, batches, *, steps: int, callbacks):
    self._classifier, self._batches = classifier, batches
    self._steps, self._callbacks = steps, callbacks

  def record(self) -> dict[str, float]:
    """Returns {"heldout_..." and "ema_heldout_...": mean}."""
    record = self._evaluate("heldout_")
    if self._classifier.averages:
      with self._classifier.averaged():
        record.update(self._evaluate("ema_heldout_"))
    return record

  def _evaluate(self, prefix: str) -> dict[str, float]:
    metrics = self._classifier.evaluate(
      self._batches,
      steps=self._steps,
      callbacks=self._callbacks,
      verbose=0,
      return_dict=True,
    )
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def deciding_loss(record: dict[str, float]) -> float:
  """Returns the loss by which checkpoints are compared.

  It is that of the weights that are exported: the averages, if there are any.
  What is not a number is worse than all others.
  """
  loss = record.get("ema_heldout_loss", record["heldout_loss"])
  return loss if math.isfinite(loss) else math.inf


def describe_evaluation(step: int, record: dict[str, float]) -> str:
  """Returns an evaluation in a line."""
  line = f"step {step}: held-out loss {record['heldout_loss']:.4f}, top-1"
  line += f" {record['heldout_top1']:.2%}"
  if "ema_heldout_top1" in record:
    line += f"; averaged weights {record['ema_heldout_loss']:.4f},"
    line += f" {record['ema_heldout_top1']:.2%}"
  return line
