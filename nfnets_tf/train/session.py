"""What a run builds: the parts that live while it trains."""

from __future__ import annotations

import logging
from typing import TextIO

import numpy as np
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.data.pipeline import evaluation_steps
from nfnets_tf.ops.errors import Preempted
from nfnets_tf.train.callbacks import Every, LogTraining
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.curves import draw_curves
from nfnets_tf.train.delivery import deliver
from nfnets_tf.train.inputs import Inputs
from nfnets_tf.train.metrics_log import MetricsLog, read_records
from nfnets_tf.train.plan import describe_gradient
from nfnets_tf.train.preemption import EndOnNotice, GoOnInInterval, Notice
from nfnets_tf.train.progress import Progress
from nfnets_tf.train.shares import check_parts
from nfnets_tf.train.strategy import describe
from nfnets_tf.train.workdir import Workdir, weights_sha256

LOGGER = logging.getLogger("nfnets_tf")

_SAMPLE_SIZE = 8


class Session:
  """One process's part of a training run, restored to its last checkpoint.

  Args:
    job: the `run.Training` that says what to do.
    files: where everything is written.
    strategy: the devices.
    train: index of the training split.
    heldout: index of the held-out split.
  """

  def __init__(
    self,
    job,
    files: Workdir,
    strategy: tf.distribute.Strategy,
    train: SplitIndex,
    heldout: SplitIndex,
  ):
    self._job, self._files, self._strategy = job, files, strategy
    self._train, self._heldout = train, heldout
    keras.utils.set_random_seed(job.seed)
    keras.mixed_precision.set_global_policy(job.policy)
    with strategy.scope():
      self._classifier = job.classifier(network=job.network(), sam=job.sam)
      replicas = strategy.num_replicas_in_sync
      check_parts(job.batch_size // replicas, self._classifier.micro_batches)
      self._classifier.compile(
        optimizer=job.optimizer(learning_rate=job.learning_rate),
        steps_per_execution=job.steps_per_execution,
      )
    self._checkpoints = Checkpoints(
      files.checkpoints, self._classifier, keep=job.checkpoints_to_keep
    )
    if self._checkpoints.latest is None:
      # A run that goes on needs those weights no more, and may have lost them.
      job.start(self._classifier)
    self._step = self._checkpoints.restore()
    self._log = MetricsLog(files, step=self._step)
    self._notice = Notice()
    self._inputs = Inputs(job, strategy, train, heldout)
    self._watch = self._inputs.watch()
    self._heldout_batches = self._inputs.heldout()
    # Made here, so that what does not fit is refused before anything is kept.
    self._next_batches = self._inputs.training(self._step)

  def fit(self, terminal: TextIO | None) -> None:
    """Trains to the last step, with whole intervals and a rest."""
    job = self._job
    self._announce()
    progress = Progress(
      total_steps=job.total_steps,
      step=self._step,
      batch_size=job.batch_size,
      stream=terminal,
    )
    callbacks = self._callbacks(progress)
    try:
      with self._notice.listening():
        self._go_on(callbacks)
        intervals, rest = divmod(job.total_steps - self._step, job.log_every)
        self._fit(intervals, job.log_every, callbacks)
        self._fit(1 if rest else 0, rest, callbacks)
    except Preempted:
      self._save()
      raise
    finally:
      progress.close()
    self._save()

  def _save(self) -> None:
    if self._checkpoints.latest_step != self._checkpoints.step:
      self._checkpoints.save()

  def _go_on(self, callbacks) -> None:
    """Does what was left to do of an interval that was broken off."""
    job, step = self._job, self._step
    begun = step % job.log_every
    if begun and step < job.total_steps:
      steps = min(job.log_every - begun, job.total_steps - step)
      restored = GoOnInInterval(self._checkpoints.metric_variables)
      self._fit(1, steps, [restored, *callbacks])
    elif step and step % job.evaluate_every == 0:
      logged = read_records(self._files.metrics)
      if not any(r["step"] == step and "heldout_loss" in r for r in logged):
        self._evaluate_at(step)

  def _fit(self, intervals: int, steps: int, callbacks) -> None:
    if not intervals:
      return
    batches, self._next_batches = self._next_batches, None
    self._classifier.fit(
      batches or self._inputs.training(self._step),
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
        progress.note(_describe_evaluation(step, record))

    def save(step):
      del step
      self._checkpoints.save()

    return [
      self._watch,
      LogTraining(self._log, progress, job.learning_rate),
      EndOnNotice(self._notice, job.log_every),
      Every(job.evaluate_every, evaluate, progress),
      Every(job.checkpoint_every, save, progress),
    ]

  def _evaluate_at(self, step: int) -> dict | None:
    """Evaluates and logs, but at the last step, where `finish` does."""
    if step == self._job.total_steps:
      return None
    record = self._evaluate()
    self._log.write(step, record)
    return record

  def finish(self) -> dict:
    """Evaluates, delivers and marks the run as done; returns its result."""
    record = self._evaluate()
    self._tell_faults()
    network = self._classifier.network
    record["weights_sha256"] = weights_sha256(network.trainable_variables)
    if self._classifier.averages:
      record["ema_weights_sha256"] = weights_sha256(self._classifier.averages)
    saved_model = deliver(
      self._job, self._files, self._classifier, self._heldout
    )
    self._save_sample()
    self._log.write(self._step, record)
    draw_curves(
      read_records(self._files.metrics),
      self._files.curves,
      title=f"NFNet {self._job.variant}, {self._step:,} steps",
    )
    result = {
      "variant": self._job.variant,
      "step": self._step,
      "heldout_examples": self._heldout.num_examples,
      "checkpoint": self._checkpoints.latest,
      "saved_model": saved_model,
      **record,
    }
    self._files.write_result(result)
    return result

  def _tell_faults(self) -> None:
    for split in (self._job.train_split, self._job.heldout_split):
      if split.faults.collect():
        LOGGER.warning(
          "Left out of the %r split, by cause: %s.", split.split, split.faults
        )

  def _evaluate(self) -> dict:
    """Returns held-out metrics of the raw and of the averaged weights."""

    def evaluate(prefix):
      metrics = self._classifier.evaluate(
        self._heldout_batches,
        steps=evaluation_steps(self._heldout, self._job.batch_size),
        callbacks=[EndOnNotice(self._notice, self._job.log_every)],
        verbose=0,
        return_dict=True,
      )
      return {f"{prefix}{name}": value for name, value in metrics.items()}

    record = evaluate("heldout_")
    if self._classifier.averages:
      with self._classifier.averaged():
        record.update(evaluate("ema_heldout_"))
    return record

  def _announce(self) -> None:
    job = self._job
    LOGGER.info(
      "Training NFNet %s on %s: %s steps of %s images, %s images an epoch from"
      " %d shards in %s.",
      job.variant,
      describe(self._strategy),
      f"{job.total_steps:,}",
      f"{job.batch_size:,}",
      f"{self._train.num_examples:,}",
      len(self._train.files),
      job.train_split.directory,
    )
    for _, gradient in describe_gradient(job.sam):
      LOGGER.info("Gradients by %s.", gradient)
    if self._step:
      LOGGER.info(
        "Going on from step %d (%s).", self._step, self._checkpoints.latest
      )

  def _save_sample(self) -> None:
    """Keeps a few held-out images, to try the SavedModel with."""
    images, *_ = next(iter(self._heldout_batches))
    images = self._strategy.experimental_local_results(images)[0]
    with tf.io.gfile.GFile(self._files.sample, "wb") as file:
      np.save(file, images[:_SAMPLE_SIZE].numpy())


def _describe_evaluation(step: int, record: dict) -> str:
  line = f"step {step}: held-out loss {record['heldout_loss']:.4f}, top-1"
  line += f" {record['heldout_top1']:.2%}"
  if "ema_heldout_top1" in record:
    line += f"; averaged weights {record['ema_heldout_loss']:.4f},"
    line += f" {record['ema_heldout_top1']:.2%}"
  return line
