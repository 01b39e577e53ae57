"""What a run builds: the parts that live while it trains."""

from __future__ import annotations

import contextlib
import logging
from typing import TextIO

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.dataset_info import SplitInfo, evaluation_steps
from nfnets_tf.errors import Preempted, RunError, UserError
from nfnets_tf.train.assembly import compiled_classifier
from nfnets_tf.train.callbacks import Every, LogTraining, NoteInterval
from nfnets_tf.train.checkpoint_files import steps_in
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.delivery import deliver
from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.evaluation import (
  Evaluation,
  deciding_loss,
  describe_evaluation,
)
from nfnets_tf.train.inputs import Inputs
from nfnets_tf.train.metrics_log import MetricsLog, read_records
from nfnets_tf.train.plan import announcement
from nfnets_tf.train.preemption import EndOnNotice, GoOnInInterval, Notice
from nfnets_tf.train.progress import Progress
from nfnets_tf.train.recovery import EndOnNotFinite, NotFinite
from nfnets_tf.train.return_path import ReturnPath
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_state import RunState

LOGGER = logging.getLogger("nfnets_tf")


class Session:
  """One process's part of a training run, restored to its last checkpoint.

  Args:
    job: the `train.TrainJob` that says what to do.
    files: where everything is written, by the chief.
    strategy: the devices.
    train: index of the training split.
    heldout: index of the held-out split.
    parts: of the order of examples; None is as many as hosts.

  Attributes:
    inputs: what it reads.
  """

  def __init__(
    self,
    job,
    files: RunDir,
    strategy: tf.distribute.Strategy,
    train: SplitInfo,
    heldout: SplitInfo,
    *,
    parts: int | None,
  ):
    self._job, self._files, self._strategy = job, files, strategy
    self._train, self._heldout = train, heldout
    self._workers = Workers(strategy)
    keras.utils.set_random_seed(job.seed)
    keras.mixed_precision.set_global_policy(job.policy)
    self._classifier = compiled_classifier(job, strategy)
    self._state = RunState(seed=job.seed)
    self._checkpoints = Checkpoints(
      files.checkpoints,
      self._classifier,
      self._state,
      keep=job.checkpoints_to_keep,
      writes=self._workers.chief,
    )
    if self._checkpoints.latest is None:
      # A run that goes on needs those weights no more, and may have lost them.
      job.start(self._classifier)
    self.inputs = Inputs(job, strategy, train, heldout, parts=parts)
    self._notice = Notice(self._workers)
    self._return = ReturnPath(
      job.recovery,
      files,
      self._checkpoints,
      self._classifier.guard,
      self._state,
      self.inputs,
      self._workers,
    )
    self._step = self._return.restore()
    self._open()

  def _open(self) -> None:
    """Makes what a restored session needs; what does not fit is refused."""
    job, chief = self._job, self._workers.chief
    if self._step > job.total_steps:
      raise UserError(
        f"the run in {self._files.root!r} is at step {self._step:,}, beyond the"
        f" {job.total_steps:,} steps of this configuration; raise EPOCHS, or"
        " start anew in another --workdir."
      )
    self._log = MetricsLog(
      self._files, step=self._step, end=job.total_steps, writes=chief
    )
    self._watch = self.inputs.watch()
    self._evaluation = Evaluation(
      self._classifier,
      self.inputs.heldout(),
      steps=evaluation_steps(self._heldout, job.batch_size),
      callbacks=[EndOnNotice(self._notice, job.log_every, job.total_steps)],
    )
    self._next_batches = self._batches()

  def _batches(self):
    offset = int(self._state.data_offset.numpy())
    return self.inputs.training(self._step + offset)

  def fit(self, terminal: TextIO | None) -> None:
    """Trains to the last step, with whole intervals and a rest."""
    for line in announcement(self._job, self._strategy, self._train):
      LOGGER.info(line)
    if path := self._step and self._checkpoints.latest:
      LOGGER.info("Going on from step %d (%s).", self._step, path)
    progress = Progress(
      total_steps=self._job.total_steps,
      step=self._step,
      batch_size=self._job.batch_size,
      stream=terminal if self._workers.chief else None,
      silent=not self._workers.chief,
    )
    try:
      with self._notice.listening():
        self._save_first()
        self._fit_to_the_end(progress)
    except Preempted:
      self._save()
      self._checkpoints.wait()
      self._workers.meet()  # no worker says so before all is saved
      raise
    except BaseException:
      with contextlib.suppress(RunError):
        self._checkpoints.wait()
      raise
    finally:
      progress.close()
    self._save()
    self._checkpoints.wait()

  def _fit_to_the_end(self, progress: Progress) -> None:
    job, callbacks = self._job, self._callbacks(progress)
    while True:
      try:
        self._go_on(callbacks)
        intervals, rest = divmod(job.total_steps - self._step, job.log_every)
        self._fit(intervals, job.log_every, callbacks)
        self._fit(1 if rest else 0, rest, callbacks)
        return
      except NotFinite:
        # Keras forgets it when it is left within a shortened call.
        self._classifier.steps_per_execution = job.steps_per_execution
        self._step = self._return.go_back()
        self._log.drop_later(self._step)
        progress.go_back(self._step)
        self._next_batches = None

  def _save_first(self) -> None:
    """Makes sure that there is something to go back to, where all find it."""
    self._save()
    self._checkpoints.wait()
    self._workers.meet()
    steps = [-1, *steps_in(self._files.checkpoints)]
    self._workers.check_same(steps[-1], self._files.root)

  def _save(self) -> None:
    if self._checkpoints.latest_step != self._checkpoints.step:
      self._checkpoints.save()

  def _go_on(self, callbacks) -> None:
    """Does what was left to do of an interval that was broken off."""
    job, step = self._job, self._step
    begun = step % job.log_every
    if begun and step < job.total_steps:
      steps = min(job.log_every - begun, job.total_steps - step)
      if int(self._state.interval_begin.numpy()) == step - begun:
        restored = GoOnInInterval(self._checkpoints.metric_variables)
        callbacks = [restored, *callbacks]
      self._fit(1, steps, callbacks)
    elif step and step % job.evaluate_every == 0:
      logged = read_records(self._files.metrics)
      done = any(r["step"] == step and "heldout_loss" in r for r in logged)
      if not self._workers.any(done):
        self._evaluate_at(step)

  def _fit(self, intervals: int, steps: int, callbacks) -> None:
    if not intervals:
      return
    batches, self._next_batches = self._next_batches, None
    self._classifier.fit(
      batches or self._batches(),
      epochs=intervals,
      steps_per_epoch=steps,
      verbose=0,
      callbacks=callbacks,
    )
    self._step = self._checkpoints.step

  def _callbacks(self, progress: Progress) -> list:
    """Logs first, saves last: what a checkpoint covers has been written."""
    job = self._job

    def evaluate(step):
      if record := self._evaluate_at(step):
        progress.note(describe_evaluation(step, record))

    return [
      NoteInterval(self._state.interval_begin, job.log_every),
      self._watch,
      LogTraining(self._log, progress, job.learning_rate),
      EndOnNotFinite(self._classifier.guard, job.recovery.in_a_row),
      EndOnNotice(self._notice, job.log_every, job.total_steps),
      Every(job.evaluate_every, evaluate, progress),
      Every(job.checkpoint_every, lambda step: self._save(), progress),
    ]

  def _evaluate_at(self, step: int) -> dict | None:
    """Evaluates and logs, but at the last step, where `finish` does."""
    if step == self._job.total_steps:
      return None
    record = self._evaluation.record()
    # In this order: ended in between, it is evaluated again.
    self._checkpoints.save_if_best(deciding_loss(record))
    self._log.write(step, record)
    return record

  def finish(self) -> None:
    """Evaluates, delivers and marks the run as done."""
    record = self._evaluation.record()
    self._checkpoints.save_if_best(deciding_loss(record))
    if self._workers.chief:
      deliver(
        self._job,
        self._files,
        self._classifier,
        self._heldout,
        self._checkpoints,
        self._log,
        record,
      )
    self._workers.meet()
