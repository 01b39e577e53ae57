"""SIGTERM at a chosen moment of a run."""

from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.loop import Preemption


class PreemptedAt(Preemption):
  """Is requested at a step.

  Args:
    trainer: whose `preemption` it replaces.
    step: of the trainer.
    query: which question at that step is the first one answered with yes; after
      an interval, the second one comes from its evaluation.
  """

  def __init__(self, trainer, step: int, query: int = 1):
    super().__init__(Workers(trainer.classifier.distribute_strategy))
    self._trainer, self._step, self._left = trainer, step, query
    trainer.preemption = self

  def is_requested(self) -> bool:
    """Returns whether the moment has come."""
    if self._trainer.step == self._step:
      self._left -= 1
    return self._left <= 0
