"""Saving and restoring the whole state of training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import tensorflow as tf

from nfnets_tf.errors import UserError, plain_message
from nfnets_tf.fileio import report_write_errors
from nfnets_tf.models.weights import named_variables
from nfnets_tf.train import checkpoint_files as files
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.run_state import RunState

LOGGER = logging.getLogger("nfnets_tf")

# They say nothing about what is in a file.
_NOT_OF_THE_FILES = (
  tf.errors.ResourceExhaustedError,
  tf.errors.UnavailableError,
  tf.errors.PermissionDeniedError,
  tf.errors.DeadlineExceededError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
)


class Checkpoints:
  """Checkpoints of a classifier: weights, averages, momentum, step, metrics.

  They are written while training goes on: `save` takes a copy of all variables
  in the host's memory, and a thread writes it.

  Args:
    directory: folder of the checkpoints.
    classifier: compiled; its optimizer's variables exist.
    state: of the run.
    keep: number of the newest checkpoints that stay, beside the best.
    writes: whether this process writes; the others read along.

  Attributes:
    metric_variables: of the metrics of an interval.
  """

  def __init__(
    self,
    directory: str,
    classifier: Classifier,
    state: RunState,
    *,
    keep: int,
    writes: bool = True,
  ):
    self._directory, self._keep, self._writes = directory, keep, writes
    self._state = state
    # Metrics restart at every interval, but a run may end within one.
    self.metric_variables = [
      variable for metric in classifier.metrics for variable in metric.variables
    ]
    optimizer = classifier.optimizer
    self._variables = {
      "metrics": _numbered(self.metric_variables),
      "parameters": named_variables(classifier.network),
      "averages": classifier.named_averages(),
      "optimizer": _numbered(optimizer.variables),
      "run": {
        "consecutive_skips": classifier.guard.consecutive_skips,
        **state.variables(),
      },
    }
    self._live = tf.train.Checkpoint(**self._variables)
    # Not when it is saved: Keras calls back under the strategy's scope, where
    # the chief would make variables that the other workers do not.
    self._copies = _copies_of(self._variables) if writes else None
    self._iterations = optimizer.iterations
    self._used = self._best = None
    self._damaged: list[int] = []
    self._made = False
    self._thread = ThreadPoolExecutor(1, "checkpoint")
    self._writing: Future | None = None

  @property
  def latest(self) -> str | None:
    """Path of the checkpoint that was saved or restored last, or is the newest.

    None if there is none.
    """
    step = self.latest_step
    return None if step is None else files.path_of(self._directory, step)

  @property
  def latest_step(self) -> int | None:
    """Step of `latest`, None if there is none."""
    if self._used is None:
      return next(iter(files.steps_in(self._directory)[::-1]), None)
    return self._used

  @property
  def best(self) -> dict | None:
    """The best evaluation, {"step", "loss"}, None before one."""
    return self._best

  @property
  def step(self) -> int:
    """Number of steps that the optimizer has made."""
    return int(self._iterations.numpy())

  def save(self) -> None:
    """Saves under the optimizer's step; the files appear a little later.

    All processes must call it: the metrics of some are in others.

    Raises:
      RunError: if the checkpoint before this one could not be written.
    """
    self.wait()
    self._copy()
    step = self._used = self.step
    if self._writes:
      self._writing = self._thread.submit(self._write, step)

  def wait(self) -> None:
    """Returns when what was saved is in its files.

    Raises:
      RunError: if it could not be written.
    """
    if self._writing is not None:
      last, self._writing = self._writing, None
      last.result()

  def save_if_best(self, loss: float) -> None:
    """Saves, and keeps it, if no evaluation before had a lower loss."""
    if self._best is not None and self._best["loss"] <= loss:
      return
    if self.latest_step != self.step:
      self.save()
    self.wait()  # what is named must be there
    self._best = {"step": self.step, "loss": loss}
    if self._writes:
      files.write_best(self._directory, self._best)

  def restore(self, fits: Callable[[], bool] = lambda: True) -> int:
    """Restores the newest checkpoint that is whole, if any; returns the step.

    Args:
      fits: whether what has been restored can be used; otherwise the one before
        is taken.

    Raises:
      UserError: if it does not hold exactly this state, or none is whole.
    """
    self.wait()
    steps = files.steps_in(self._directory)[::-1]  # the newest first
    self._best = files.read_best(self._directory)
    for step in steps:
      path = files.path_of(self._directory, step)
      try:
        self._restore(path)
      except tf.errors.OpError as error:
        if isinstance(error, _NOT_OF_THE_FILES):
          raise
        self._damaged.append(step)
        LOGGER.warning(
          "The checkpoint %s is damaged (%s); the one before it is used.",
          path,
          plain_message(error),
        )
        continue
      if fits():
        self._used = step
        return self.step
    if steps:
      raise UserError(
        f"none of the {len(steps)} checkpoints in {self._directory!r} can be"
        " used, they are damaged or not of finite steps; restore one from a"
        " copy, or start anew in another --workdir."
      )
    return 0

  def discard_later(self) -> None:
    """Forgets checkpoints of later steps than that which is used.

    Damaged ones stay, under another name.
    """
    used = -1 if self._used is None else self._used
    forgotten = self._best is not None and self._best["step"] > used
    if forgotten:
      self._best = None
    if not self._writes:
      return
    if forgotten:
      files.write_best(self._directory, None)
    files.set_aside(self._directory, self._damaged)
    self._damaged = []
    steps = files.steps_in(self._directory)
    files.remove(self._directory, [step for step in steps if step > used])

  def _copy(self) -> None:
    values = tf.nest.map_structure(lambda v: v.read_value(), self._variables)
    if self._writes:
      tf.nest.map_structure(lambda c, v: c.assign(v), self._copies, values)

  def _write(self, step: int) -> None:
    with report_write_errors(self._directory):
      if not self._made:  # later it must not appear anew, and empty
        tf.io.gfile.makedirs(self._directory)
        self._made = True
      files.write(tf.train.Checkpoint(**self._copies), self._directory, step)
      files.rotate(self._directory, keep=self._keep)

  def _restore(self, path: str) -> None:
    try:
      # A sum over each tensor's bytes is compared.
      self._live.read(path).assert_consumed()
    except (AssertionError, ValueError) as error:
      raise UserError(
        f"the checkpoint {path!r} does not fit this network and optimizer"
        f" ({plain_message(error)}); use the configuration that made it,"
        " or another --workdir."
      ) from error
    self._state.check()


def _copies_of(variables):
  """Returns variables of the same shapes in the host's memory."""
  with tf.device("/CPU:0"):
    return tf.nest.map_structure(
      lambda v: tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False),
      variables,
    )


def _numbered(variables) -> dict[str, tf.Variable]:
  return {f"{number:05}": v for number, v in enumerate(variables)}
