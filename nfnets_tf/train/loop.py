"""The training loop: intervals of steps, evaluations, checkpoints, SIGTERM.

The inner loop over steps is orbit's: one `tf.function` whose number of steps is
a tensor, so that a shorter last call is not traced again. The outer loop is
ours, because `orbit.Controller` saves and evaluates only between loops: it can
neither resume within an interval (its metrics are reset when a loop begins)
nor end on SIGTERM within one, and it has no rollback.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

import orbit
import tensorflow as tf

from nfnets_tf.errors import Preempted, RunError, UserError
from nfnets_tf.fileio import checkpoint_steps
from nfnets_tf.keras_api import keras
from nfnets_tf.progress import activity
from nfnets_tf.train.checkpointing import Checkpointer
from nfnets_tf.train.rollback import Recovery, Restorer
from nfnets_tf.train.run_log import MetricsLog, Progress, read_records

if TYPE_CHECKING:
  from nfnets_tf.train.classifier import Classifier
  from nfnets_tf.train.distribution import Workers
  from nfnets_tf.train.inputs import Inputs
  from nfnets_tf.train.run_config import Schedule
  from nfnets_tf.train.run_dir import RunDir

LOGGER = logging.getLogger("nfnets_tf")

# Metrics that have a mean over an interval in which all steps were skipped.
_METRICS_OF_SKIPPED = (
  "skipped_steps",
  "invalid_examples",
  "input_wait_fraction",
)


class Preemption:
  """Detects SIGTERM, sent to this process or another worker."""

  def __init__(self, workers: Workers):
    self._workers = workers
    self._received = threading.Event()

  def is_requested(self) -> bool:
    """Returns whether to stop; all workers must call it, and agree."""
    return self._workers.any(self._received.is_set())

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Handles SIGTERM for the duration of a `with`.

    Does nothing outside the main thread, where Python forbids signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    previous = signal.signal(
      signal.SIGTERM, lambda number, frame: self._received.set()
    )
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, previous)


class Trainer:
  """Trains and evaluates one run; restored to its latest checkpoint.

  Each record of the log is the mean since the record before it. The metrics are
  part of the checkpoint, so that this holds for a run that is killed or
  preempted within an interval. The classifier is compiled under the strategy;
  `learning_rate` maps a step to the rate, for the log; `init_weights` is called
  with the classifier of a run without a checkpoint.

  Attributes:
    classifier, inputs: as given.
    checkpoints, log: of the run; only the chief writes.
    preemption: checked at every return to Python.
    step: number of completed steps.

  Raises:
    UserError: if the checkpoints do not fit the configuration.
  """

  def __init__(
    self,
    classifier: Classifier,
    inputs: Inputs,
    files: RunDir,
    workers: Workers,
    *,
    schedule: Schedule,
    learning_rate: Callable[[int], object],
    recovery: Recovery,
    init_weights: Callable[[keras.Model], None],
    seed: int,
  ):
    self.classifier, self.inputs = classifier, inputs
    self._files, self._workers = files, workers
    self._schedule, self._learning_rate = schedule, learning_rate
    self.checkpoints = Checkpointer(
      files.checkpoints,
      classifier,
      seed=seed,
      keep=schedule.checkpoints_to_keep,
      writes=workers.chief,
    )
    if self.checkpoints.latest_step is None:
      # A run that resumes needs no initial weights, and may have lost the file.
      init_weights(classifier)
    self.preemption = Preemption(workers)
    self._restorer = Restorer(
      recovery, files, self.checkpoints, inputs, workers
    )
    self.step = self._restorer.restore()
    self._check_length()  # before records of later steps are removed
    self.log = MetricsLog(
      files, step=self.step, end=schedule.total_steps, writes=workers.chief
    )
    self._compile()
    # Now: they may refuse the batch size or the number of hosts.
    self._input_monitor = inputs.monitor()
    self._batches, self._heldout = self._open_batches(), self._open_heldout()

  def _compile(self) -> None:
    classifier = self.classifier
    self._train_steps = _compile_loop(classifier, classifier.make_step)
    self._test_steps = _compile_loop(classifier, classifier.score_batch)
    self._results = _compile_call(classifier, self._stack_results)
    self._reset_metrics = _compile_call(classifier, classifier.reset_metrics)

  def fit(self, terminal: TextIO | None) -> None:
    """Trains to the last step, with a progress bar if there is a terminal.

    Raises:
      Preempted: after SIGTERM, when everything is saved.
      Diverged: if steps stay non-finite after all rollbacks.
      UserError: if too many images are invalid.
      RunError: if a file cannot be written.
    """
    if self.step:
      path = self.checkpoints.latest
      LOGGER.info("Resuming from step %d (%s).", self.step, path)
    progress = Progress(
      total_steps=self._schedule.total_steps,
      step=self.step,
      batch_size=self.inputs.batch_size,
      stream=terminal if self._workers.chief else None,
      silent=not self._workers.chief,
    )
    try:
      with self.preemption.listening(), progress.shown():
        self._save_first()
        self._train(progress)
    except Preempted:
      self.checkpoints.save()
      self.checkpoints.wait()
      self._workers.barrier()  # no worker exits before everything is saved
      raise
    except BaseException:
      with contextlib.suppress(RunError):
        self.checkpoints.wait()
      raise
    finally:
      progress.close()
    self.checkpoints.save()
    self.checkpoints.wait()

  def evaluate(self) -> dict[str, float]:
    """Evaluates the raw and the averaged weights on the held-out split.

    Saves the checkpoint if its loss is the lowest so far.

    Returns:
      {"heldout_NAME" and "ema_heldout_NAME": mean}.
    """
    batches = iter(self._heldout)
    record = self._evaluate_weights("heldout_", batches)
    if self.classifier.averages:
      with self.classifier.averaged():
        record.update(self._evaluate_weights("ema_heldout_", batches))
    # The loss of the weights that are exported.
    loss = record.get("ema_heldout_loss", record["heldout_loss"])
    if self._may_be_best():
      self.checkpoints.save_if_best(loss if math.isfinite(loss) else math.inf)
    return record

  def _may_be_best(self) -> bool:
    """Returns False while pruning goes on: a denser network is none to keep."""
    pruning, last = self.classifier.pruning, self._schedule.total_steps
    return pruning is None or self.step >= min(pruning.window[1], last)

  def _check_length(self) -> None:
    if self.step > self._schedule.total_steps:
      raise UserError(
        f"the run in {self._files.root!r} is at step {self.step:,}, beyond the"
        f" {self._schedule.total_steps:,} steps of this configuration; raise"
        " EPOCHS, or start another --workdir."
      )

  def _open_batches(self):
    offset = int(self.checkpoints.data_offset.numpy())
    return self.inputs.training(self.step + offset)

  def _open_heldout(self):
    # For the raw weights, then for the averages.
    return self.inputs.heldout(passes=2 if self.classifier.averages else 1)

  def _save_first(self) -> None:
    """Saves an initial checkpoint and checks that every worker sees it."""
    self.checkpoints.save()
    self.checkpoints.wait()
    self._workers.barrier()
    steps = [-1, *checkpoint_steps(self._files.checkpoints)]
    self._workers.check_same_step(steps[-1], self._files.root)

  def _train(self, progress: Progress) -> None:
    schedule = self._schedule
    # The run may have ended between an interval and its evaluation. At the last
    # step `evaluate` is called after `fit`.
    if (
      0 < self.step < schedule.total_steps
      and self.step % schedule.evaluate_every == 0
      and not self._workers.any(self._is_evaluated())
    ):
      self._log_evaluation(progress)
    batches = iter(self._batches)
    self._input_monitor.start()
    progress.resume_clock()
    while self.step < schedule.total_steps:
      if self._train_interval(batches):
        self._finish_interval(progress)
      else:
        self.step = self._restorer.roll_back()
        self.log.drop_later(self.step)
        progress.go_back(self.step)
        batches = iter(self._open_batches())
        self._input_monitor.start()

  def _is_evaluated(self) -> bool:
    return any(
      record["step"] == self.step and "heldout_loss" in record
      for record in read_records(self._files.metrics)
    )

  def _train_interval(self, batches) -> bool:
    """Trains to the next multiple of `log_every`, or the last step.

    Returns:
      False as soon as a rollback is due, else True.
    """
    schedule = self._schedule
    end = self.step - self.step % schedule.log_every + schedule.log_every
    end = min(end, schedule.total_steps)
    self._input_monitor.start_interval()
    while self.step < end:
      count = min(schedule.steps_per_execution, end - self.step)
      self._train_steps(batches, tf.constant(count, tf.int64))
      self.step += count
      if self._restorer.is_due:
        return False
      # At the end of the interval its record is written first.
      if self.step < end:
        self._stop_if_preempted()
    return True

  def _finish_interval(self, progress: Progress) -> None:
    """Logs first, saves last: a checkpoint implies the records before it."""
    schedule = self._schedule
    self._log_interval(progress)
    self._stop_if_preempted()
    # At the last step `evaluate` is called after `fit`.
    if (
      self.step % schedule.evaluate_every == 0
      and self.step < schedule.total_steps
    ):
      self._log_evaluation(progress)
    if self.step % schedule.checkpoint_every == 0:
      self.checkpoints.save()
    progress.resume_clock()

  def _log_interval(self, progress: Progress) -> None:
    record = self._read_metrics()
    self._input_monitor.end_interval(record)
    # Now, not when an interval starts: a checkpoint that is saved until then
    # must hold no metrics of steps that are logged already.
    self._reset_metrics()
    if record.get("skipped_steps") == 1:
      record = {k: v for k, v in record.items() if k in _METRICS_OF_SKIPPED}
    if record.get("sam_active") == 0:
      del record["perturbed_loss"]  # no step has one
    record["learning_rate"] = float(self._learning_rate(self.step))
    record["images_per_second"] = progress.update(
      self.step, record.get("loss", math.nan)
    )
    self.log.write(self.step, record)

  def _log_evaluation(self, progress: Progress) -> None:
    # `evaluate` saves before the record is written: a run that is killed in
    # between evaluates again.
    record = self.evaluate()
    self.log.write(self.step, record)
    progress.note(_describe_evaluation(self.step, record))

  def _evaluate_weights(self, prefix: str, batches) -> dict[str, float]:
    steps = self.inputs.heldout_steps
    self._reset_metrics()
    try:
      with activity("Evaluating on the held-out images", steps) as shown:
        while steps:
          count = min(self._schedule.steps_per_execution, steps)
          self._test_steps(batches, tf.constant(count, tf.int64))
          steps -= count
          shown.advance(count)
          self._stop_if_preempted()
      metrics = self._read_metrics()
    finally:
      # Training's own metrics were logged, and are zero, at an evaluation.
      self._reset_metrics()
    names = (metric.name for metric in self.classifier.example_metrics())
    return {f"{prefix}{name}": metrics[name] for name in names}

  def _stack_results(self) -> tf.Tensor:
    results = [metric.result() for metric in self.classifier.metrics]
    if pruner := self.classifier.pruner:
      results.append(pruner.sparsity())
    return tf.stack(results)

  def _read_metrics(self) -> dict[str, float]:
    names = [metric.name for metric in self.classifier.metrics]
    if self.classifier.pruner:
      names.append("sparsity")
    return dict(zip(names, self._results().numpy().tolist()))

  def _stop_if_preempted(self) -> None:
    if self.preemption.is_requested():
      raise Preempted


def _compile_loop(classifier: Classifier, update: Callable) -> Callable:
  """Returns a compiled function (iterator, num_steps) that runs updates."""
  strategy = classifier.distribute_strategy

  def step(iterator):
    strategy.run(update, args=(next(iterator),))

  return tf.function(orbit.utils.create_tf_while_loop_fn(step))


def _compile_call(classifier: Classifier, run: Callable) -> Callable:
  """Returns a function that runs operations on all replicas in one call.

  Where one process drives several hosts, each would be a call of its own that
  waits for one of them.
  """
  strategy = classifier.distribute_strategy
  compiled = tf.function(run, autograph=False)

  def call():
    with strategy.scope():  # metrics are sums over all replicas
      return compiled()

  return call


def _describe_evaluation(step: int, record: dict[str, float]) -> str:
  line = f"step {step}: held-out loss {record['heldout_loss']:.4f}, top-1"
  line += f" {record['heldout_top1']:.2%}"
  if "ema_heldout_top1" in record:
    line += f"; averaged weights {record['ema_heldout_loss']:.4f},"
    line += f" {record['ema_heldout_top1']:.2%}"
  return line
