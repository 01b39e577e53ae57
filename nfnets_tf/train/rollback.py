"""Restores the latest usable checkpoint, and rolls back non-finite training.

After a rollback, training resumes after the batches that produced non-finite
values. `rollbacks.json` in the work directory records this, so that a killed
run takes the same path again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from nfnets_tf.errors import Diverged
from nfnets_tf.fileio import read_bytes, write_atomically
from nfnets_tf.ranges import accepts, integer

if TYPE_CHECKING:
  from nfnets_tf.train.checkpointing import Checkpointer
  from nfnets_tf.train.distribution import Workers
  from nfnets_tf.train.inputs import Inputs
  from nfnets_tf.train.run_dir import RunDir

LOGGER = logging.getLogger("nfnets_tf")

_NAMES_SHOWN = 5


@accepts(max_consecutive_skips=integer(1), max_rollbacks=integer(0))
@dataclasses.dataclass(frozen=True)
class Recovery:
  """The policy of rolling back, and of giving up.

  Attributes:
    max_consecutive_skips: steps skipped in a row after which the run rolls back
      to its latest checkpoint from before them.
    max_rollbacks: after which the run fails instead.

  Raises:
    UserError: if a number is out of range.
  """

  max_consecutive_skips: int
  max_rollbacks: int


class Rollback(NamedTuple):
  """One return to an earlier checkpoint.

  Attributes:
    at_step: step at which the run was.
    to_step: step of the checkpoint.
    data_offset: from there on; see `Checkpointer.data_offset`.
    batches: numbers of the skipped batches in the run's order, [first, end).
  """

  at_step: int
  to_step: int
  data_offset: int
  batches: tuple[int, int]


class RollbackHistory:
  """All rollbacks of a run, kept in a file.

  Args:
    path: of the file.
    writes: whether this process writes it.

  Attributes:
    rollbacks: all of them, in their order.
  """

  def __init__(self, path: str, *, writes: bool = True):
    self._path, self._writes = path, writes
    self.rollbacks: list[Rollback] = []
    if tf.io.gfile.exists(path):
      self.rollbacks = [
        Rollback(**{**entry, "batches": tuple(entry["batches"])})
        for entry in json.loads(read_bytes(path))
      ]

  def add(self, rollback: Rollback) -> None:
    """Records a rollback."""
    self._write([*self.rollbacks, rollback])

  def drop_later(self, step: int) -> None:
    """Drops rollbacks to later steps than the one that was restored.

    Their checkpoints are lost, and the run will reach those steps again.
    """
    kept = [entry for entry in self.rollbacks if entry.to_step <= step]
    if kept != self.rollbacks:
      self._write(kept)

  def _write(self, rollbacks: list[Rollback]) -> None:
    self.rollbacks = rollbacks
    if self._writes:
      content = [entry._asdict() for entry in self.rollbacks]
      write_atomically(self._path, json.dumps(content, indent=1) + "\n")

  def is_abandoned(self, step: int, data_offset: int) -> bool:
    """Returns whether a checkpoint is on the path that was rolled back."""
    if not self.rollbacks:
      return False
    last = self.rollbacks[-1]
    return step > last.to_step and data_offset < last.data_offset

  def offset_at(self, step: int, data_offset: int) -> int:
    """Returns the data offset with which to continue from a checkpoint."""
    if self.rollbacks and step == self.rollbacks[-1].to_step:
      return self.rollbacks[-1].data_offset
    return data_offset


class Restorer:
  """Restores a run when it starts, and rolls it back.

  Sets the `data_offset` of the checkpoints; all workers restore the same step.
  """

  def __init__(
    self,
    recovery: Recovery,
    files: RunDir,
    checkpoints: Checkpointer,
    inputs: Inputs,
    workers: Workers,
  ):
    self._recovery, self._files = recovery, files
    self._checkpoints = checkpoints
    self._skips = checkpoints.consecutive_skips
    self._inputs, self._workers = inputs, workers
    self._history = RollbackHistory(files.rollbacks, writes=workers.chief)

  @property
  def is_due(self) -> bool:
    """True if enough steps were skipped in a row for a rollback."""
    return int(self._skips.numpy()) >= self._recovery.max_consecutive_skips

  def restore(self) -> int:
    """Restores the latest usable checkpoint; returns its step, 0 without one.

    Raises:
      UserError: if there are checkpoints, but none can be used.
    """
    history, checkpoints = self._history, self._checkpoints
    step = checkpoints.restore(
      lambda: not history.is_abandoned(checkpoints.step, self._offset())
    )
    self._workers.check_same_step(step, self._files.root)
    history.drop_later(step)
    self._continue_from(step)
    return step

  def roll_back(self) -> int:
    """Rolls back to before the skipped steps; returns the checkpoint's step.

    Raises:
      Diverged: if the run has rolled back too often.
    """
    step = self._checkpoints.step
    end = step + self._offset()
    first = end - int(self._skips.numpy())
    if len(self._history.rollbacks) >= self._recovery.max_rollbacks:
      raise self._report_divergence(step, first, end)
    self._checkpoints.wait()
    self._workers.barrier()  # all must see the file that the chief wrote
    to_step = self._checkpoints.restore(lambda: not self._skips.numpy())
    self._workers.check_same_step(to_step, self._files.root)
    self._history.add(Rollback(step, to_step, end - to_step, (first, end)))
    LOGGER.warning(
      "%d steps in a row up to step %d were not finite; rolled back to step %d"
      " and skipping their batches (rollback %d of %d).",
      end - first,
      step,
      to_step,
      len(self._history.rollbacks),
      self._recovery.max_rollbacks,
    )
    self._continue_from(to_step)
    return to_step

  def _continue_from(self, step: int) -> None:
    offset = self._history.offset_at(step, self._offset())
    self._checkpoints.data_offset.assign(offset)
    self._workers.barrier()  # all have read the files removed below
    self._checkpoints.discard_later()

  def _offset(self) -> int:
    return int(self._checkpoints.data_offset.numpy())

  def _report_divergence(self, step: int, first: int, end: int) -> Diverged:
    """Writes the names of the last batches' examples; returns the error."""
    names = self._inputs.names(first, end)
    if self._workers.chief:
      lines = [f"{number}\t{name}\n" for number, name in names]
      write_atomically(self._files.not_finite, "batch\tname\n" + "".join(lines))
    shown = ", ".join(name or "(no name)" for _, name in names[:_NAMES_SHOWN])
    return Diverged(
      f"the loss or a gradient of {end - first} steps in a row up to step"
      f" {step} was not finite after {len(self._history.rollbacks)} rollbacks;"
      f" check the examples of those batches, {shown}, ... (all {len(names)}"
      f" are in {self._files.not_finite}), or bind a lower PEAK_LR in another"
      " --workdir."
    )
