"""Input profiling: time spent waiting for batches, and cost of each stage."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data.loading import (
  current_host,
  dataset_options,
  parallel_calls,
)
from nfnets_tf.data.preprocessing import Transform, compose
from nfnets_tf.data.tfrecords import read_features
from nfnets_tf.data.validation import RecordValidator

_SAMPLE = 64


class WaitTimer:
  """Accumulates the time between requesting a batch and receiving it.

  With prefetching to a device this overestimates the time the device is idle.
  TensorFlow tells no time while deterministic operations are required; nothing
  is measured then. One process may make the datasets of several hosts, each in
  the scope of its device: every host adds up its own time.

  Args:
    timestamp: returns seconds, float64 []; runs inside tf.data.
  """

  def __init__(self, timestamp: Callable[[], tf.Tensor] = tf.timestamp):
    self._timestamp, self._measures = timestamp, True
    self._seconds_of_hosts: dict[str, tf.Variable] = {}
    self._take = tf.function(self._take_seconds)

  def timed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the same batches; each adds the time it was waited for."""
    self._measures = _has_time()
    if not self._measures:
      return batches
    host = current_host()
    if host not in self._seconds_of_hosts:
      # A TensorFlow variable, because Python must not run in tf.data's threads:
      # see `validation.InvalidRecords`. On the host, where a batch costs no
      # remote call.
      with tf.device(host):
        self._seconds_of_hosts[host] = tf.Variable(
          0.0, dtype=tf.float64, trainable=False
        )
      self._take = tf.function(self._take_seconds)  # of one host more
    seconds = self._seconds_of_hosts[host]
    # `zip` requests its inputs one after the other when it is itself requested.
    requests = tf.data.Dataset.counter().map(lambda _: self._timestamp())

    def record(request_time, batch):
      with tf.control_dependencies(tf.nest.flatten(batch)):
        waited = self._timestamp() - request_time
      with tf.control_dependencies([seconds.assign_add(waited)]):
        return tf.nest.map_structure(tf.identity, batch)

    timed = tf.data.Dataset.zip((requests, batches)).map(record)
    return timed.with_options(batches.options())

  def reset(self) -> float | None:
    """Returns the seconds that the slowest host waited since the last call.

    Starts over. None if they are not measured.
    """
    if not self._measures:
      return None
    return float(self._take())

  def _take_seconds(self) -> tf.Tensor:
    # In a function: one call, not several for each host.
    waited = [tf.constant(0.0, tf.float64)]
    for variable in self._seconds_of_hosts.values():
      waited.append(variable.read_value())
      # Not `assign(0)`: a batch may arrive in between.
      variable.assign_sub(waited[-1])
    return tf.reduce_max(tf.stack(waited))


def _has_time() -> bool:
  """Returns whether `tf.timestamp` can be used."""
  try:
    with tf.init_scope():
      tf.timestamp()
  except tf.errors.FailedPreconditionError:
    return False
  return True


def _seconds_per_element(dataset: tf.data.Dataset, seconds: float) -> float:
  iterator = iter(dataset)
  next(iterator)  # starts the threads
  start = time.monotonic()
  for count in itertools.count(1):
    next(iterator)
    if (elapsed := time.monotonic() - start) >= seconds:
      return elapsed / count


def profile_stages(
  examples: tf.data.Dataset,
  transforms: Sequence[Transform],
  validate: RecordValidator,
  *,
  seconds: float = 0.5,
  measure: Callable[[tf.data.Dataset, float], float] = _seconds_per_element,
) -> dict[str, float]:
  """Measures reading and each transform, on all cores.

  Args:
    examples: endless (position, serialized example) dataset, as from
      `Split.training_examples`.
    transforms: in the order in which the pipeline applies them.
    validate: names the image's feature, and leaves out invalid records.
    seconds: duration of each measurement.
    measure: returns the seconds per element of a dataset, measured for some
      seconds.

  Returns:
    {stage: seconds per image}, "reading" and the class names of transforms.
  """
  records = examples.map(lambda _, record: record)
  reading = records.batch(_SAMPLE).with_options(dataset_options())
  costs = {"reading": measure(reading, seconds) / _SAMPLE}
  fields = validate.fields
  images = [
    read_features(record, fields).images[0]
    for record in records.take(_SAMPLE).as_numpy_iterator()
    if validate(record) is None
  ]
  if fields.raw or not images:
    return costs
  before = 0.0
  for count, transform in enumerate(transforms, 1):
    # A prefix at a time: later transforms need what earlier ones return.
    mapped = _map_images(images, compose(transforms[:count]))
    total = measure(mapped, seconds)
    name = type(transform).__name__
    costs[name] = costs.get(name, 0.0) + max(total - before, 0.0)
    before = total
  return costs


def _map_images(images: list[bytes], transform: Transform) -> tf.data.Dataset:
  numbers = tf.data.Dataset.range(len(images)).repeat()
  encoded = tf.constant(images)
  mapped = numbers.map(
    lambda i: transform(encoded[i], tf.stack([0, i])),
    parallel_calls(),
    deterministic=False,
  )
  # Only around transforms: around a missing shard, it would retry forever.
  return mapped.ignore_errors().with_options(dataset_options())
