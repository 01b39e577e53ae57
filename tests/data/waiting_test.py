import time

import tensorflow as tf

from nfnets_tf.data import tuning
from nfnets_tf.data.waiting import Waiting


def test_slow_batches_are_waited_for_and_ready_ones_are_not():
  waiting = Waiting()

  def slow(number):
    return tf.numpy_function(
      lambda x: time.sleep(0.05) or x, [number], tf.int64
    )

  batches = tf.data.Dataset.range(4).map(slow, num_parallel_calls=1)
  assert list(waiting.timed(batches).as_numpy_iterator()) == [0, 1, 2, 3]
  assert 0.15 < waiting.take() < 1.0
  assert waiting.take() == 0.0
  batches = batches.prefetch(4).with_options(tuning.options())
  ready = iter(waiting.timed(batches))
  time.sleep(0.5)
  next(ready)
  waiting.take()
  time.sleep(0.5)
  next(ready)
  assert waiting.take() < 0.04


def test_what_the_consumer_does_is_not_waiting():
  waiting = Waiting()
  for _ in waiting.timed(tf.data.Dataset.range(5)):
    time.sleep(0.05)
  assert waiting.take() < 0.05


def test_batches_of_any_structure_pass():
  waiting = Waiting()
  batches = tf.data.Dataset.from_tensors((tf.ones([2]), {"a": tf.zeros([1])}))
  (images, rest) = next(iter(waiting.timed(batches)))
  assert images.shape == [2] and rest["a"].shape == [1]
