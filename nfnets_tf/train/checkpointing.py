"""Checkpoints of a run: latest N and best, written next to training.

A checkpoint `ckpt-STEP` is two files, `.data-00000-of-00001` and `.index`, that
are written in a directory of their own and moved, the index last. It exists
when its index exists, so that a killed process never leaves a visible half.

docs/reliability.md says what `tf.train.CheckpointManager` lacks: what would
remain of this module around it is about as long as the module.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import tensorflow as tf

from nfnets_tf.errors import UserError, plain_message
from nfnets_tf.fileio import (
  checkpoint_path,
  checkpoint_steps,
  read_bytes,
  report_write_errors,
  write_atomically,
)

if TYPE_CHECKING:
  from nfnets_tf.train.classifier import Classifier

LOGGER = logging.getLogger("nfnets_tf")

_SUFFIXES = (".data-00000-of-00001", ".index")
# Errors that do not mean that a file is damaged.
_ENVIRONMENT_ERRORS = (
  tf.errors.ResourceExhaustedError,
  tf.errors.UnavailableError,
  tf.errors.PermissionDeniedError,
  tf.errors.DeadlineExceededError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
)


class Checkpointer:
  """Saves and restores the whole state of a run.

  The state is the weights, their averages, the optimizer's variables (step and
  momentum), the metrics of the interval, the seed and the place in the data. It
  is written while training continues: `save` copies all variables in the host's
  memory, and a thread writes the copies.

  Args:
    directory: of the checkpoints.
    classifier: compiled.
    seed: of the run; a checkpoint of another seed is refused.
    keep: number of the latest checkpoints to keep, next to the best one.
    writes: whether this process writes; all others only restore.

  Attributes:
    data_offset: batches that were skipped by rollbacks, an int64 variable: step
      s trains on batch s + data_offset of the run's order.
    consecutive_skips: of the `NonfiniteGuard`, an int64 variable.
    best: {"step", "loss"} of the best evaluation, None before one.
  """

  def __init__(
    self,
    directory: str,
    classifier: Classifier,
    *,
    seed: int,
    keep: int,
    writes: bool = True,
  ):
    self._directory, self._keep, self._writes = directory, keep, writes
    self._best_path = os.path.join(directory, "best.json")
    self._seed = seed
    with tf.device("/CPU:0"):
      self._saved_seed, self.data_offset = (
        tf.Variable(value, dtype=tf.int64, trainable=False)
        for value in (seed, 0)
      )
    self._variables = _model_state(classifier)
    self.consecutive_skips = classifier.guard.consecutive_skips
    self._variables["run"] = {
      "consecutive_skips": self.consecutive_skips,
      "seed": self._saved_seed,
      "data_offset": self.data_offset,
    }
    self._checkpoint = tf.train.Checkpoint(**self._variables)
    # Made here, not in `save`: MultiWorkerMirroredStrategy would count the
    # chief's variables, which the other workers do not make.
    self._copies = _copies_of(self._variables) if writes else None
    self._iterations = classifier.optimizer.iterations
    self._current_step = self.best = None
    self._damaged: list[int] = []
    self._directory_made = False
    self._thread = ThreadPoolExecutor(1, "checkpoint")
    self._writing: Future | None = None

  @property
  def latest(self) -> str | None:
    """Path of the checkpoint of `latest_step`."""
    step = self.latest_step
    return None if step is None else checkpoint_path(self._directory, step)

  @property
  def latest_step(self) -> int | None:
    """Step saved or restored last, else the latest in the directory."""
    if self._current_step is None:
      return max(checkpoint_steps(self._directory), default=None)
    return self._current_step

  @property
  def step(self) -> int:
    """Number of optimizer steps."""
    return int(self._iterations.numpy())

  def save(self) -> None:
    """Saves under the current step; the files appear a little later.

    Does nothing if this step was saved or restored last. All processes must
    call it: under several workers, metrics are sums over all of them.

    Raises:
      RunError: if the previous checkpoint could not be written.
    """
    step = self.step
    if self._current_step == step:
      return
    self.wait()
    values = tf.nest.map_structure(lambda v: v.read_value(), self._variables)
    self._current_step = step
    if self._writes:
      tf.nest.map_structure(lambda c, v: c.assign(v), self._copies, values)
      self._writing = self._thread.submit(self._write, step)

  def wait(self) -> None:
    """Blocks until the last save is on disk.

    Raises:
      RunError: if it could not be written.
    """
    if self._writing is not None:
      last, self._writing = self._writing, None
      last.result()

  def save_if_best(self, loss: float) -> None:
    """Saves and keeps this step if no earlier evaluation had a lower loss."""
    if self.best is not None and self.best["loss"] <= loss:
      return
    self.save()
    self.wait()  # best.json must not name a checkpoint that is not there
    self._record_best({"step": self.step, "loss": loss})

  def restore(self, accept: Callable[[], bool] = lambda: True) -> int:
    """Restores the latest usable checkpoint, if any; returns its step.

    Args:
      accept: whether the restored state can be used; if not, the checkpoint
        before is tried.

    Raises:
      UserError: if a checkpoint does not fit the model, or none can be used.
    """
    self.wait()
    steps = checkpoint_steps(self._directory)[::-1]
    has_best = tf.io.gfile.exists(self._best_path)
    self.best = json.loads(read_bytes(self._best_path)) if has_best else None
    for step in steps:
      path = checkpoint_path(self._directory, step)
      try:
        self._read(path)
      except _ENVIRONMENT_ERRORS:
        raise
      except tf.errors.OpError as error:
        self._damaged.append(step)
        LOGGER.warning(
          "The checkpoint %s is damaged (%s); using the one before it.",
          path,
          plain_message(error),
        )
        continue
      if accept():
        self._current_step = step
        return self.step
    if steps:
      raise UserError(
        f"none of the {len(steps)} checkpoints in {self._directory!r} can be"
        " used: all are damaged or contain non-finite steps; restore one from"
        " a backup, or start another --workdir."
      )
    return 0

  def discard_later(self) -> None:
    """Removes checkpoints of later steps than the one that is used.

    Damaged ones are renamed instead.
    """
    used = -1 if self._current_step is None else self._current_step
    if self.best is not None and self.best["step"] > used:
      self._record_best(None)
    if not self._writes:
      return
    for path in _existing_files(self._directory, self._damaged):
      tf.io.gfile.rename(path, f"{path}.damaged", overwrite=True)
    self._damaged = []
    steps = checkpoint_steps(self._directory)
    self._remove(step for step in steps if step > used)

  def _write(self, step: int) -> None:
    # The copies' device, since this thread has no scope: on a slice, which has
    # several hosts, TensorFlow writes a file for each host with tensors.
    device = tf.device(self._saved_seed.device)
    with report_write_errors(self._directory), device:
      if not self._directory_made:
        # Only once: a directory that vanishes must not be created again, empty.
        tf.io.gfile.makedirs(self._directory)
        self._directory_made = True
      write_checkpoint(self._copies, self._directory, step)
      self._rotate()

  def _rotate(self) -> None:
    """Removes all but the latest `keep` checkpoints and the best one."""
    steps = checkpoint_steps(self._directory)
    kept = {*steps[-self._keep :], self.best and self.best["step"]}
    self._remove(step for step in steps if step not in kept)
    names = [f"ckpt-{step}" for step in steps if step in kept]
    if names:  # else the directory has vanished, as the next write reports
      # A CheckpointState for other tools, such as tf.train.latest_checkpoint;
      # never read here. TensorFlow's function that writes it is deprecated.
      lines = [f'model_checkpoint_path: "{names[-1]}"']
      lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
      path = os.path.join(self._directory, "checkpoint")
      write_atomically(path, "\n".join(lines) + "\n")

  def _remove(self, steps: Iterable[int]) -> None:
    for path in _existing_files(self._directory, steps):
      tf.io.gfile.remove(path)

  def _record_best(self, best: dict | None) -> None:
    self.best = best
    if self._writes:
      write_atomically(self._best_path, json.dumps(best))

  def _read(self, path: str) -> None:
    try:
      # TensorFlow compares a checksum of each tensor's bytes.
      self._checkpoint.read(path).assert_consumed()
    except (AssertionError, ValueError) as error:
      raise UserError(
        f"the checkpoint {path!r} does not fit this network and optimizer"
        f" ({plain_message(error)}); use the configuration that made it,"
        " or another --workdir."
      ) from error
    seed = int(self._saved_seed.numpy())
    if seed != self._seed:
      raise UserError(
        f"the checkpoint is of a run with SEED = {seed}, but SEED ="
        f" {self._seed}; use that seed, or another --workdir."
      )


def write_checkpoint(variables: Mapping, directory: str, step: int) -> None:
  """Writes a checkpoint atomically, replacing one of the same step.

  Args:
    variables: nested mapping of names to variables.
    directory: of the checkpoints; must exist.
    step: of the checkpoint.

  Raises:
    OSError, tf.errors.OpError: if it cannot be written; no part of it stays.
  """
  partial = os.path.join(directory, "partial")
  if not tf.io.gfile.isdir(partial):
    tf.io.gfile.mkdir(partial)
  try:
    written = checkpoint_path(partial, step)
    # A tensor: TensorFlow makes all directories of a string, also those of a
    # work directory that has vanished.
    tf.train.Checkpoint(**variables).write(tf.constant(written))
    final = checkpoint_path(directory, step)
    if tf.io.gfile.exists(final + _SUFFIXES[1]):
      # Else the old index would point into the new data.
      tf.io.gfile.remove(final + _SUFFIXES[1])
    for suffix in _SUFFIXES:
      tf.io.gfile.rename(written + suffix, final + suffix, overwrite=True)
  finally:
    if tf.io.gfile.isdir(partial):
      tf.io.gfile.rmtree(partial)


def _existing_files(directory: str, steps: Iterable[int]) -> Iterator[str]:
  """Yields files of checkpoints, each index first: it makes them visible."""
  for step in steps:
    for suffix in reversed(_SUFFIXES):
      path = checkpoint_path(directory, step) + suffix
      if tf.io.gfile.exists(path):
        yield path


def _model_state(classifier: Classifier) -> dict[str, dict[str, tf.Variable]]:
  return {
    # The metrics too: a run may be killed or preempted within an interval.
    "metrics": {
      f"{metric.name}_{i}": variable
      for metric in classifier.metrics
      for i, variable in enumerate(metric.variables)
    },
    "parameters": classifier.named_weights(),
    "averages": classifier.named_averages(),
    "optimizer": {
      f"{i:05}": v for i, v in enumerate(classifier.optimizer.variables)
    },
  }


def _copies_of(variables):
  """Returns variables of the same shapes and dtypes in the host's memory."""
  with tf.device("/CPU:0"):
    return tf.nest.map_structure(
      lambda v: tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False),
      variables,
    )
