"""What each stage of the input pipeline costs, measured on the spot."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.data import tuning
from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.data.order import ShardOrder
from nfnets_tf.data.pipeline import Split
from nfnets_tf.data.preprocess import compose

_SAMPLE = 64


def stage_costs(
  split: Split, index: SplitInfo, *, seconds: float = 0.5
) -> dict[str, float]:
  """Measures reading and every operation, on all cores.

  Args:
    split: whose operations are meant.
    index: of its shards.
    seconds: how long each is measured.

  Returns:
    {stage: seconds an image}, operations by the names of their classes.
  """
  order = ShardOrder(index.files, index.counts, seed=0, shuffle_buffer=_SAMPLE)
  records = order.examples(0).map(lambda _, record: record)
  reading = records.batch(_SAMPLE).with_options(tuning.options())
  costs = {"reading": _seconds_each(reading, seconds) / _SAMPLE}
  images = [
    _features(record)[index.fields.image].bytes_list.value[0]
    for record in records.take(_SAMPLE).as_numpy_iterator()
    if split.faults.examine(record) is None
  ]
  before = 0.0
  operations = (*split.operations, *split.mixed_operations)
  if index.fields.raw or not images:
    operations = ()
  for count, operation in enumerate(operations, 1):
    taken = _mapped_seconds(images, compose(operations[:count]), seconds)
    name = type(operation).__name__
    costs[name] = costs.get(name, 0.0) + max(taken - before, 0.0)
    before = taken
  return costs


def _features(serialized: bytes):
  return tf.train.Example.FromString(serialized).features.feature


def _mapped_seconds(images, operation: Callable, seconds: float) -> float:
  numbers = tf.data.Dataset.range(len(images)).repeat()
  encoded = tf.constant(images)
  mapped = numbers.map(
    lambda i: operation(encoded[i], tf.stack([0, i])),
    tuning.parallel_calls(),
    deterministic=False,
  )
  mapped = mapped.ignore_errors()  # of operations; it would not end for a shard
  return _seconds_each(mapped.with_options(tuning.options()), seconds)


def _seconds_each(dataset: tf.data.Dataset, seconds: float) -> float:
  """Returns how long an element takes once the data set runs."""
  iterator = iter(dataset)
  next(iterator)
  start = time.monotonic()
  for count in itertools.count(1):
    next(iterator)
    if (taken := time.monotonic() - start) >= seconds:
      return taken / count
