import os
import time

import tensorflow as tf

from nfnets_tf.data import tuning


def test_only_the_cores_that_we_may_use_count(monkeypatch):
  if hasattr(os, "sched_getaffinity"):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
    assert tuning.parallel_calls() == 3
  monkeypatch.delattr(os, "sched_getaffinity", raising=False)
  monkeypatch.setattr(os, "cpu_count", lambda: 4)
  assert tuning.parallel_calls() == 4


def test_iterators_are_given_back_at_once():
  """With tf.data's tuning on, a third of them last until 5.1 s."""
  numbers = tf.data.Dataset.range(1 << 40).map(
    lambda x: x + 1, tuning.parallel_calls()
  )
  iterators = [
    iter(numbers.prefetch(2).with_options(tuning.options())) for _ in range(12)
  ]
  for iterator in iterators:
    next(iterator)
  time.sleep(2.7)
  start = time.perf_counter()
  del iterator
  iterators.clear()
  assert time.perf_counter() - start < 1


def test_order_is_kept_and_sharding_is_ours():
  options = tuning.options()
  assert options.deterministic
  assert (
    options.experimental_distribute.auto_shard_policy
    == tf.data.experimental.AutoShardPolicy.OFF
  )
