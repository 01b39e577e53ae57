"""Going back when training does not recover from steps that are not finite.

A run that goes back does not meet the same batches again: it takes up the order
of examples behind the ones it stumbled over. `rollbacks.json` in the work
directory says when, so that a run that is killed goes the same way again.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import require_int
from nfnets_tf.fileio import write_atomically
from nfnets_tf.train.nonfinite import NonfiniteGuard


class NotFinite(Exception):
  """Too many steps in a row were left out."""


class Recovery:
  """When a run goes back, and when it gives up.

  Args:
    in_a_row: steps that are left out, one behind the other, after which the run
      goes back to its last checkpoint from before them.
    rollbacks: how many times it does; then it stops.

  Raises:
    UserError: if a value is out of range.
  """

  def __init__(self, *, in_a_row: int, rollbacks: int):
    require_int("Recovery.in_a_row", in_a_row, 1)
    require_int("Recovery.rollbacks", rollbacks, 0)
    self.in_a_row, self.rollbacks = in_a_row, rollbacks


class Rollback(NamedTuple):
  """One return to an earlier step.

  Attributes:
    at_step: step at which the run was.
    to_step: of the checkpoint that it returned to.
    data_offset: from there on; see `run_state.RunState`.
    batches: of the run's order that were not finite, [first, end).
  """

  at_step: int
  to_step: int
  data_offset: int
  batches: tuple[int, int]


class Rollbacks:
  """All returns of a run, in a file.

  Args:
    path: of the file.
    writes: whether this process writes it.
  """

  def __init__(self, path: str, *, writes: bool = True):
    self._path, self._writes = path, writes
    self.all: list[Rollback] = []
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path) as file:
        self.all = [
          Rollback(**{**entry, "batches": tuple(entry["batches"])})
          for entry in json.load(file)
        ]

  def add(self, rollback: Rollback) -> None:
    """Writes one down."""
    self.all.append(rollback)
    self._write()

  def forget_later(self, step: int) -> None:
    """Forgets returns to later steps than that which the run goes on from.

    Their checkpoints are lost, and the run comes there anew.
    """
    kept = [one for one in self.all if one.to_step <= step]
    if kept != self.all:
      self.all = kept
      self._write()

  def _write(self) -> None:
    if self._writes:
      content = [one._asdict() for one in self.all]
      write_atomically(self._path, json.dumps(content, indent=1) + "\n")

  def left_behind(self, step: int, data_offset: int) -> bool:
    """Returns whether a checkpoint is of the way that was given up."""
    if not self.all:
      return False
    last = self.all[-1]
    return step > last.to_step and data_offset < last.data_offset

  def offset_at(self, step: int, data_offset: int) -> int:
    """Returns the offset to go on with from a checkpoint.

    Args:
      step: of the checkpoint.
      data_offset: as the checkpoint has it.
    """
    if self.all and step == self.all[-1].to_step:
      return self.all[-1].data_offset
    return data_offset


class EndOnNotFinite(keras.callbacks.Callback):
  """Raises `NotFinite` at the next return to Python, once it is time.

  Args:
    guard: counts.
    in_a_row: see `Recovery`.
  """

  def __init__(self, guard: NonfiniteGuard, in_a_row: int):
    super().__init__()
    self._guard, self._in_a_row = guard, in_a_row

  def on_train_batch_end(self, batch, logs=None):
    if int(self._guard.consecutive_skips.numpy()) >= self._in_a_row:
      raise NotFinite
