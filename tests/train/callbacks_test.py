import math
import types

import pytest
import tensorflow as tf

from nfnets_tf.train.callbacks import (
  Every,
  LogTraining,
  NoteInterval,
  current_step,
)


class Iterations:
  def __init__(self, step):
    self.step = step

  def numpy(self):
    return self.step


def model_at(step):
  optimizer = types.SimpleNamespace(iterations=Iterations(step))
  return types.SimpleNamespace(optimizer=optimizer)


class Spy:
  def __init__(self):
    self.calls = []

  def update(self, step, loss):
    self.calls.append(("update", step, loss))
    return 320.0

  def resume_clock(self):
    self.calls.append("resume")

  def write(self, step, record):
    self.calls.append((step, record))


def test_an_interval_is_logged_under_the_optimizers_step():
  log, progress = Spy(), Spy()
  callback = LogTraining(log, progress, lambda step: step / 100)
  callback.set_model(model_at(40))
  callback.on_epoch_end(0, {"loss": 1.5, "top1": 0.25})
  assert progress.calls == [("update", 40, 1.5)]
  record = {"loss": 1.5, "top1": 0.25, "learning_rate": 0.4}
  assert log.calls == [(40, {**record, "images_per_second": 320.0})]


def test_of_what_did_not_happen_there_is_no_mean():
  log, progress = Spy(), Spy()
  callback = LogTraining(log, progress, lambda step: 0.5)
  callback.set_model(model_at(4))
  of_all = {
    "skipped_steps": 1.0,
    "invalid_examples": 0.25,
    "input_wait_fraction": 0.1,
  }
  callback.on_epoch_end(0, {"loss": 0.0, "grad_norm": 0.0, **of_all})
  ((_, step, loss),) = progress.calls
  assert step == 4 and math.isnan(loss)
  speed = {"learning_rate": 0.5, "images_per_second": 320.0}
  assert log.calls == [(4, {**of_all, **speed})]

  some = {"skipped_steps": 0.75, "loss": 1.5, "sam_active": 0.0}
  callback.on_epoch_end(0, {**some, "perturbed_loss": 0.0})
  assert progress.calls[1] == ("update", 4, 1.5)
  assert log.calls[1] == (4, {**some, **speed})


@pytest.mark.parametrize(
  "step, noted, expected",
  [
    (8, 4, 8),  # a new interval
    (6, 4, 4),  # the rest of one whose metrics have come back
    (6, 0, 6),  # the rest of one whose metrics are lost
    (6, 5, 6),
    (0, 0, 0),
  ],
)
def test_the_beginning_of_an_interval_is_where_its_metrics_are_empty(
  step, noted, expected
):
  begin = tf.Variable(noted, dtype=tf.int64)
  callback = NoteInterval(begin, log_every=4)
  callback.set_model(model_at(step))
  callback.on_epoch_begin(0)
  assert begin.numpy() == expected


def test_every_acts_on_multiples_and_stops_the_clock():
  acted, progress = [], Spy()
  callback = Every(20, acted.append, progress)
  for step in (10, 20, 30, 40):
    callback.set_model(model_at(step))
    callback.on_epoch_end(0)
  assert acted == [20, 40] and progress.calls == ["resume"] * 2


def test_current_step():
  assert current_step(model_at(7)) == 7
