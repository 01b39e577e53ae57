"""Ending when the machine is taken away, with nothing lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import Preempted
from nfnets_tf.train.distribution import Workers


class Notice:
  """Whether this process, or another worker, was asked to end, by SIGTERM.

  Args:
    workers: that train together.
  """

  def __init__(self, workers: Workers):
    self._workers = workers
    self._received = False

  @property
  def received(self) -> bool:
    """Whether one was; all workers must ask, and get the same answer."""
    return self._workers.any(self._received)

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Takes SIGTERM as a notice for the time of a `with`.

    Only a process's main thread can; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = signal.signal(signal.SIGTERM, self._receive)
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, before)

  def _receive(self, number, frame) -> None:
    del number, frame
    self._received = True


class EndOnNotice(keras.callbacks.Callback):
  """Raises `Preempted` at the next return to Python, once there is a notice.

  The last call of an interval is left to the interval's end, so that what it
  logs is logged.

  Args:
    notice: is asked.
    log_every: steps of an interval.
    total_steps: of the run, which end its last interval.
  """

  def __init__(self, notice: Notice, log_every: int, total_steps: int):
    super().__init__()
    self._notice, self._log_every = notice, log_every
    self._total_steps = total_steps

  def on_train_batch_end(self, batch, logs=None):
    if self._notice.received and self._within_interval():
      raise Preempted

  def on_epoch_end(self, epoch, logs=None):
    self._end()

  def on_test_batch_end(self, batch, logs=None):
    self._end()

  def _end(self) -> None:
    if self._notice.received:
      raise Preempted

  def _within_interval(self) -> bool:
    step = int(self.model.optimizer.iterations.numpy())
    return step % self._log_every > 0 and step < self._total_steps


class GoOnInInterval(keras.callbacks.Callback):
  """Gives an interval's means back what they had when it was broken off.

  Keras empties them when `fit` begins.

  Args:
    variables: of the metrics, as they were restored.
  """

  def __init__(self, variables: Sequence[tf.Variable]):
    super().__init__()
    self._variables = list(variables)
    self._values = [variable.numpy() for variable in variables]

  def on_epoch_begin(self, epoch, logs=None):
    for variable, value in zip(self._variables, self._values):
      variable.assign(value)
    self._variables = []
