import os
import time

import pytest
import tensorflow as tf

from nfnets_tf.data.augmentation import Augmentation
from nfnets_tf.data.pipeline import DataStream
from nfnets_tf.data.preprocessing import Flip, Resize
from nfnets_tf.data.profiling import WaitTimer, profile_stages
from tests.support.datasets import make_split


class Clock:
  """Seconds that only tests advance, readable inside tf.data."""

  def __init__(self):
    with tf.device("CPU:0"):
      self._seconds = tf.Variable(0.0, dtype=tf.float64)

  def __call__(self):
    return self._seconds.read_value()

  def advance(self, seconds):
    return self._seconds.assign_add(seconds)


def test_wait_timer_excludes_the_time_of_the_consumer():
  clock = Clock()
  timer = WaitTimer(clock)

  def slow(number):
    with tf.control_dependencies([clock.advance(0.25)]):
      return tf.identity(number)

  batches = timer.timed(tf.data.Dataset.range(4).map(slow))
  for number, batch in enumerate(batches.as_numpy_iterator()):
    assert batch == number
    clock.advance(100.0)  # a training step
  assert timer.reset() == 1.0
  assert timer.reset() == 0.0


def test_without_time_batches_are_not_measured(monkeypatch):
  """As if TensorFlow's operations had to be deterministic."""

  def refuse():
    raise tf.errors.FailedPreconditionError(None, None, "Timestamp")

  monkeypatch.setattr(tf, "timestamp", refuse)
  timer = WaitTimer(refuse)
  batches = timer.timed(tf.data.Dataset.range(3))
  assert list(batches.as_numpy_iterator()) == [0, 1, 2]
  assert timer.reset() is None


def test_wait_timer_keeps_the_structure_of_batches():
  batches = tf.data.Dataset.from_tensors((tf.ones([2]), {"a": tf.zeros([1])}))
  images, rest = next(iter(WaitTimer().timed(batches)))
  assert images.shape == [2] and rest["a"].shape == [1]


class Slow:
  def __call__(self, image, seed):
    del seed
    wait = tf.numpy_function(lambda: time.sleep(0.01) or 0, [], tf.int64)
    with tf.control_dependencies([wait]):
      return tf.identity(image)


def profile(split, info, **options):
  stream = DataStream(batch_size=1, shuffle_buffer=64, seed=0)
  return profile_stages(
    split.training_examples(info, stream=stream, start_step=0),
    (*split.transforms, *split.augmentation.transforms),
    split.invalid_records.validate,
    **options,
  )


def test_slow_stage_costs_most(make_dataset):
  split = make_split(
    make_dataset(),
    transforms=[Flip(), Resize(image_size=8)],
    augmentation=Augmentation(post_mix_transforms=[Slow()]),
  )
  costs = profile(split, split.read_info(), seconds=0.3)
  assert list(costs) == ["reading", "Flip", "Resize", "Slow"]
  assert max(costs, key=costs.get) == "Slow"
  assert costs["Slow"] > 0.010 / 256  # 10 ms each, on all cores at once


def test_stage_cost_is_the_added_time(make_dataset):
  split = make_split(make_dataset(), transforms=[Flip(), Resize(image_size=8)])
  measured = iter([6.4, 0.5, 0.7])  # of a batch of 64, then of single images
  costs = profile(split, split.read_info(), measure=lambda *_: next(measured))
  assert costs == pytest.approx({"reading": 0.1, "Flip": 0.5, "Resize": 0.2})


def test_missing_shard_raises_instead_of_waiting(make_dataset):
  split = make_split(make_dataset())
  info = split.read_info()
  for path in info.files:
    os.remove(path)
  with pytest.raises(tf.errors.NotFoundError):
    profile(split, info, seconds=0.1)
