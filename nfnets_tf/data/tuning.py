"""How tf.data runs our pipelines: parallelism, order, sharding.

tf.data's own tuning is off. Its thread sleeps between two looks, longer each
time and up to a minute, and whether it hears that its iterator is given back is
a race (TensorFlow 2.15): one time in three the caller waits until it wakes,
tens of seconds at the end of an evaluation. Decoding is all there is to tune,
and it takes every core.
"""

import os

import tensorflow as tf


def parallel_calls() -> int:
  """Number of elements computed at a time: the cores that we may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def options() -> tf.data.Options:
  """Returns options that keep the order and leave tuning and sharding to us."""
  chosen = tf.data.Options()
  chosen.deterministic = True
  chosen.autotune.enabled = False
  # Images keep every core busy; one that is shared out among cores only waits.
  chosen.threading.max_intra_op_parallelism = 1
  # Hosts are told their part; TensorFlow's own guess falls back silently.
  chosen.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.OFF
  )
  return chosen
