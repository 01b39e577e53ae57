"""What happens between intervals of training: log, evaluate, save.

The run gives Keras one "epoch" for each interval of `log_every` steps, so that
nothing touches the host in between.
"""

import math
from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.train.run_log import MetricsLog, Progress

_OF_ALL_STEPS = ("skipped_steps", "invalid_examples", "input_wait_fraction")


class LogTraining(keras.callbacks.Callback):
  """Writes an interval's means, the learning rate and the speed.

  Args:
    log: receives the record.
    progress: shows it.
    learning_rate: maps a step to the rate.
  """

  def __init__(self, log: MetricsLog, progress: Progress, learning_rate):
    super().__init__()
    self._log, self._progress = log, progress
    self._learning_rate = learning_rate

  def on_epoch_end(self, epoch, logs=None):
    step = current_step(self.model)
    record = {name: float(value) for name, value in logs.items()}
    # Of what did not happen there is no mean.
    if record.get("skipped_steps") == 1:
      record = {k: v for k, v in record.items() if k in _OF_ALL_STEPS}
    if record.get("sam_active") == 0:
      del record["perturbed_loss"]
    record["learning_rate"] = float(self._learning_rate(step))
    record["images_per_second"] = self._progress.update(
      step, record.get("loss", math.nan)
    )
    self._log.write(step, record)


class NoteInterval(keras.callbacks.Callback):
  """Keeps the step at which the metrics were emptied last.

  Args:
    begin: int64 variable that is set to it.
    log_every: steps of an interval.
  """

  def __init__(self, begin: tf.Variable, log_every: int):
    super().__init__()
    self._begin, self._log_every = begin, log_every

  def on_epoch_begin(self, epoch, logs=None):
    step = current_step(self.model)
    whole = step - step % self._log_every
    # Of an interval that was broken off the metrics have come back.
    if int(self._begin.numpy()) != whole:
      self._begin.assign(step)

  def on_epoch_end(self, epoch, logs=None):
    self._begin.assign(current_step(self.model))  # an evaluation may come


class Every(keras.callbacks.Callback):
  """Calls `action(step)` at every interval's end that is a multiple of `steps`.

  Args:
    steps: a multiple of the interval.
    action: receives the step.
    progress: whose clock leaves out the time that the action takes.
  """

  def __init__(
    self, steps: int, action: Callable[[int], None], progress: Progress
  ):
    super().__init__()
    self._steps, self._action, self._progress = steps, action, progress

  def on_epoch_end(self, epoch, logs=None):
    step = current_step(self.model)
    if step % self._steps == 0:
      self._action(step)
      self._progress.resume_clock()


def current_step(model: keras.Model) -> int:
  """Returns the number of steps that the model's optimizer has made."""
  return int(model.optimizer.iterations.numpy())
