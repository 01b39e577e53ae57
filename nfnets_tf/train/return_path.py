"""Where a run goes on: at its last checkpoint, or before a bad stretch."""

from __future__ import annotations

import logging

from nfnets_tf.errors import Diverged
from nfnets_tf.fileio import write_atomically
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.inputs import Inputs
from nfnets_tf.train.nonfinite import NonfiniteGuard
from nfnets_tf.train.recovery import Recovery, Rollback, Rollbacks
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_state import RunState

LOGGER = logging.getLogger("nfnets_tf")

_NAMES_SHOWN = 5


class ReturnPath:
  """Restores a run, at its beginning and when it has to go back.

  Args:
    recovery: when to go back, and how often.
    files: of the run.
    checkpoints: are restored.
    guard: counts the steps that were left out.
    state: is set to the batches to go on with.
    inputs: name the examples of a batch.
    workers: do the same.
  """

  def __init__(
    self,
    recovery: Recovery,
    files: RunDir,
    checkpoints: Checkpoints,
    guard: NonfiniteGuard,
    state: RunState,
    inputs: Inputs,
    workers: Workers,
  ):
    self._recovery, self._files = recovery, files
    self._checkpoints, self._guard = checkpoints, guard
    self._state, self._inputs = state, inputs
    self._workers = workers
    self._rollbacks = Rollbacks(files.rollbacks, writes=workers.chief)

  def restore(self) -> int:
    """Restores the newest checkpoint that can be used; returns its step.

    Raises:
      UserError: if there are some, but none can be used.
    """
    step = self._checkpoints.restore(
      lambda: (
        not self._rollbacks.left_behind(self._checkpoints.step, self._offset())
      )
    )
    self._workers.check_same(step, self._files.root)
    self._rollbacks.forget_later(step)
    self._take_up(step)
    return step

  def go_back(self) -> int:
    """Goes back behind the steps that were left out; returns the step.

    Raises:
      Diverged: if it has been done too often.
    """
    at = self._checkpoints.step
    end = at + self._offset()
    first = end - int(self._guard.consecutive_skips.numpy())
    if len(self._rollbacks.all) >= self._recovery.rollbacks:
      raise self._gave_up(at, first, end)
    self._checkpoints.wait()
    self._workers.meet()  # what the chief was writing is there for all
    step = self._checkpoints.restore(
      lambda: not self._guard.consecutive_skips.numpy()
    )
    self._workers.check_same(step, self._files.root)
    self._rollbacks.add(Rollback(at, step, end - step, (first, end)))
    LOGGER.warning(
      "%d steps in a row up to step %d were not finite; going back to step %d,"
      " and on behind their batches (%d of %d times).",
      end - first,
      at,
      step,
      len(self._rollbacks.all),
      self._recovery.rollbacks,
    )
    self._take_up(step)
    return step

  def _take_up(self, step: int) -> None:
    offset = self._rollbacks.offset_at(step, self._offset())
    self._state.data_offset.assign(offset)
    self._workers.meet()  # nobody reads any more what is removed now
    self._checkpoints.discard_later()

  def _offset(self) -> int:
    return int(self._state.data_offset.numpy())

  def _gave_up(self, at: int, first: int, end: int) -> Diverged:
    """Names the examples of the batches that were met last."""
    names = self._inputs.names(first, end)
    if self._workers.chief:
      lines = [f"{number}\t{name}\n" for number, name in names]
      write_atomically(self._files.not_finite, "batch\tname\n" + "".join(lines))
    shown = ", ".join(name or "(no name)" for _, name in names[:_NAMES_SHOWN])
    return Diverged(
      f"the loss or a gradient of {end - first} steps in a row up to step {at}"
      f" was not finite, after {len(self._rollbacks.all)} returns to earlier"
      f" checkpoints; look at the examples of those batches, {shown}, ... (all"
      f" {len(names)} are in {self._files.not_finite}), or bind a lower PEAK_LR"
      " in another --workdir."
    )
