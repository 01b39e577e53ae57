"""The processes that train together, and what they agree upon."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError


class Workers:
  """One process's view of all that run the same command.

  Under `MultiWorkerMirroredStrategy` there is one for each worker of TF_CONFIG;
  any other strategy has one process, which agrees with itself. All must call
  the same methods in the same order: each waits for the others.

  Args:
    strategy: of this process.

  Attributes:
    count: number of processes.
    index: of this one.
    chief: whether it writes files and speaks: the first one.
  """

  def __init__(self, strategy: tf.distribute.Strategy):
    self._strategy = strategy
    self.count, self.index = 1, 0
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
      resolver = strategy.cluster_resolver
      jobs = resolver.cluster_spec().as_dict()
      # TensorFlow counts a job "chief" before the workers.
      first = len(jobs.get("chief", ()))
      self.count = max(1, first + len(jobs.get("worker", ())))
      if resolver.task_type == "worker":
        self.index = first + resolver.task_id
    self.chief = self.index == 0

  def gathered(self, value: int) -> list[int]:
    """Returns the value of every worker, in their order."""
    if self.count == 1:
      return [value]
    row = np.zeros([self.count], np.int64)
    row[self.index] = value
    first = self.index * self._strategy.num_replicas_in_sync // self.count

    def of_replica(context):
      mine = context.replica_id_in_sync_group == first
      return row if mine else np.zeros_like(row)

    rows = self._strategy.experimental_distribute_values_from_function(
      of_replica
    )
    total = self._strategy.reduce(tf.distribute.ReduceOp.SUM, rows, axis=None)
    return total.numpy().tolist()

  def any(self, value: bool) -> bool:
    """Returns whether it is so for any worker."""
    return any(self.gathered(int(value)))

  def meet(self) -> None:
    """Returns when all have come here."""
    self.gathered(0)

  def check_same(self, step: int, workdir: str) -> None:
    """Raises a UserError unless all workers found the same checkpoint."""
    steps = self.gathered(step)
    if len(set(steps)) > 1:
      raise UserError(
        f"the workers found checkpoints of different steps in {workdir!r}"
        f" ({', '.join(map(str, steps))}); give a --workdir on storage that all"
        " of them share."
      )
