"""What a run builds: the parts that live while it trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TextIO

from tensorflow import keras

from nfnets_tf.errors import Preempted, RunError, UserError
from nfnets_tf.train.callbacks import Every, LogTraining, NoteInterval
from nfnets_tf.train.checkpoint_files import steps_in
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.evaluation import (
  Evaluation,
  deciding_loss,
  describe_evaluation,
)
from nfnets_tf.train.inputs import Inputs
from nfnets_tf.train.preemption import EndOnNotice, GoOnInInterval, Notice
from nfnets_tf.train.recovery import EndOnNotFinite, NotFinite, Recovery
from nfnets_tf.train.return_path import ReturnPath
from nfnets_tf.train.run_config import Schedule
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_log import MetricsLog, Progress, read_records
from nfnets_tf.train.run_state import RunState

LOGGER = logging.getLogger("nfnets_tf")


class Session:
  """One process's part of a training run, restored to its last checkpoint.

  Args:
    classifier: compiled under the strategy.
    inputs: training and held-out batches.
    files: where everything is written, by the chief.
    workers: the processes that train together.
    schedule: length and intervals.
    learning_rate: maps a step to the rate, for the log.
    recovery: when to roll back.
    init_weights: called with the classifier of a run without a checkpoint.
    seed: of the run.

  Attributes:
    classifier, inputs: as given.
    checkpoints: of the run.
    log: of the run.
  """

  def __init__(
    self,
    classifier: Classifier,
    inputs: Inputs,
    files: RunDir,
    workers: Workers,
    *,
    schedule: Schedule,
    learning_rate: Callable,
    recovery: Recovery,
    init_weights: Callable[[keras.Model], None],
    seed: int,
  ):
    self.classifier, self.inputs = classifier, inputs
    self._files, self._workers = files, workers
    self._schedule, self._learning_rate = schedule, learning_rate
    self._recovery = recovery
    self._state = RunState(seed=seed)
    self.checkpoints = Checkpoints(
      files.checkpoints,
      self.classifier,
      self._state,
      keep=schedule.checkpoints_to_keep,
      writes=self._workers.chief,
    )
    if self.checkpoints.latest is None:
      # A run that goes on needs those weights no more, and may have lost them.
      init_weights(classifier)
    self._notice = Notice(self._workers)
    self._return = ReturnPath(
      recovery,
      files,
      self.checkpoints,
      self.classifier.guard,
      self._state,
      inputs,
      self._workers,
    )
    self._step = self._return.restore()
    self._open()

  def _open(self) -> None:
    """Makes what a restored session needs; what does not fit is refused."""
    schedule, chief = self._schedule, self._workers.chief
    if self._step > schedule.total_steps:
      raise UserError(
        f"the run in {self._files.root!r} is at step {self._step:,}, beyond the"
        f" {schedule.total_steps:,} steps of this configuration; raise EPOCHS,"
        " or start another --workdir."
      )
    self.log = MetricsLog(
      self._files, step=self._step, end=schedule.total_steps, writes=chief
    )
    self._watch = self.inputs.watch()
    self._evaluation = Evaluation(
      self.classifier,
      self.inputs.heldout(),
      steps=self.inputs.heldout_steps,
      callbacks=[
        EndOnNotice(self._notice, schedule.log_every, schedule.total_steps)
      ],
    )
    self._next_batches = self._batches()

  def _batches(self):
    offset = int(self._state.data_offset.numpy())
    return self.inputs.training(self._step + offset)

  def fit(self, terminal: TextIO | None) -> None:
    """Trains to the last step, with whole intervals and a rest."""
    if path := self._step and self.checkpoints.latest:
      LOGGER.info("Going on from step %d (%s).", self._step, path)
    progress = Progress(
      total_steps=self._schedule.total_steps,
      step=self._step,
      batch_size=self.inputs.batch_size,
      stream=terminal if self._workers.chief else None,
      silent=not self._workers.chief,
    )
    try:
      with self._notice.listening():
        self._save_first()
        self._fit_to_the_end(progress)
    except Preempted:
      self._save()
      self.checkpoints.wait()
      self._workers.meet()  # no worker says so before all is saved
      raise
    except BaseException:
      with contextlib.suppress(RunError):
        self.checkpoints.wait()
      raise
    finally:
      progress.close()
    self._save()
    self.checkpoints.wait()

  def _fit_to_the_end(self, progress: Progress) -> None:
    schedule, callbacks = self._schedule, self._callbacks(progress)
    while True:
      try:
        self._go_on(callbacks)
        intervals, rest = divmod(
          schedule.total_steps - self._step, schedule.log_every
        )
        self._fit(intervals, schedule.log_every, callbacks)
        self._fit(1 if rest else 0, rest, callbacks)
        return
      except NotFinite:
        # Keras forgets it when it is left within a shortened call.
        self.classifier.steps_per_execution = schedule.steps_per_execution
        self._step = self._return.go_back()
        self.log.drop_later(self._step)
        progress.go_back(self._step)
        self._next_batches = None

  def _save_first(self) -> None:
    """Makes sure that there is something to go back to, where all find it."""
    self._save()
    self.checkpoints.wait()
    self._workers.meet()
    steps = [-1, *steps_in(self._files.checkpoints)]
    self._workers.check_same(steps[-1], self._files.root)

  def _save(self) -> None:
    if self.checkpoints.latest_step != self.checkpoints.step:
      self.checkpoints.save()

  def _go_on(self, callbacks) -> None:
    """Does what was left to do of an interval that was broken off."""
    schedule, step = self._schedule, self._step
    begun = step % schedule.log_every
    if begun and step < schedule.total_steps:
      steps = min(schedule.log_every - begun, schedule.total_steps - step)
      if int(self._state.interval_begin.numpy()) == step - begun:
        restored = GoOnInInterval(self.checkpoints.metric_variables)
        callbacks = [restored, *callbacks]
      self._fit(1, steps, callbacks)
    elif step and step % schedule.evaluate_every == 0:
      logged = read_records(self._files.metrics)
      done = any(r["step"] == step and "heldout_loss" in r for r in logged)
      if not self._workers.any(done):
        self._evaluate_at(step)

  def _fit(self, intervals: int, steps: int, callbacks) -> None:
    if not intervals:
      return
    batches, self._next_batches = self._next_batches, None
    self.classifier.fit(
      batches or self._batches(),
      epochs=intervals,
      steps_per_epoch=steps,
      verbose=0,
      callbacks=callbacks,
    )
    self._step = self.checkpoints.step

  def _callbacks(self, progress: Progress) -> list:
    """Logs first, saves last: what a checkpoint covers has been written."""
    schedule = self._schedule

    def evaluate(step):
      if record := self._evaluate_at(step):
        progress.note(describe_evaluation(step, record))

    return [
      NoteInterval(self._state.interval_begin, schedule.log_every),
      self._watch,
      LogTraining(self.log, progress, self._learning_rate),
      EndOnNotFinite(self.classifier.guard, self._recovery.in_a_row),
      EndOnNotice(self._notice, schedule.log_every, schedule.total_steps),
      Every(schedule.evaluate_every, evaluate, progress),
      Every(schedule.checkpoint_every, lambda step: self._save(), progress),
    ]

  def _evaluate_at(self, step: int) -> dict | None:
    """Evaluates and logs, but at the last step, which `evaluate` does."""
    if step == self._schedule.total_steps:
      return None
    record = self._evaluation.record()
    # In this order: ended in between, it is evaluated again.
    self.checkpoints.save_if_best(deciding_loss(record))
    self.log.write(step, record)
    return record

  def evaluate(self) -> dict[str, float]:
    """Evaluates at the last step, as `fit` does not; returns the record."""
    record = self._evaluation.record()
    self.checkpoints.save_if_best(deciding_loss(record))
    return record
