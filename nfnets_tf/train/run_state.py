"""What a run is in the middle of, beside the network: a checkpoint's rest."""

from __future__ import annotations

import tensorflow as tf

from nfnets_tf.errors import UserError


class RunState:
  """Integers that are saved and restored with every checkpoint.

  Args:
    seed: of the run.

  Attributes:
    data_offset: batches that were never trained on, so that step s trains on
      batch s + data_offset of the run's order.
    interval_begin: step at which the metrics were emptied last.
  """

  def __init__(self, *, seed: int):
    self._given = seed
    with tf.device("/CPU:0"):
      self._seed = tf.Variable(seed, dtype=tf.int64, trainable=False)
      self.data_offset, self.interval_begin = (
        tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(2)
      )

  def variables(self) -> dict[str, tf.Variable]:
    """Returns all of it by name."""
    return {
      "seed": self._seed,
      "data_offset": self.data_offset,
      "interval_begin": self.interval_begin,
    }

  def check(self) -> None:
    """Raises a UserError if what was restored is of another seed."""
    seed = int(self._seed.numpy())
    if seed != self._given:
      raise UserError(
        f"the checkpoint is of a run with SEED = {seed}, but SEED ="
        f" {self._given}; use that seed, or another --workdir."
      )
