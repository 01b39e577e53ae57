"""Batches of a run for its strategy, and a monitor of reading them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from nfnets_tf.data.dataset_info import evaluation_steps
from nfnets_tf.data.loading import flatten_leading_axes
from nfnets_tf.data.pipeline import DataStream
from nfnets_tf.data.profiling import WaitTimer, profile_stages
from nfnets_tf.data.tfrecords import read_filename
from nfnets_tf.errors import UserError

if TYPE_CHECKING:
  from nfnets_tf.data.dataset_info import SplitInfo
  from nfnets_tf.data.validation import InvalidRecords
  from nfnets_tf.train.run_config import DataConfig

LOGGER = logging.getLogger("nfnets_tf")

_SLOW_FRACTION = 0.05  # of the time of an interval


class Inputs:
  """The training and held-out batches of one process.

  Training's order of examples consists of equal data streams, and each host
  reads some of them, so that a run resumes in the same order on fewer or more
  hosts.

  Attributes:
    train_info: of the training split.
    heldout_info: of the held-out split.
    num_data_streams: a multiple of the number of hosts; if it is given as None,
      `training` sets it to that number.
    heldout_steps: number of batches of `heldout`.
    batch_size: examples per step, over all replicas.
  """

  def __init__(
    self,
    data: DataConfig,
    strategy: tf.distribute.Strategy,
    train_info: SplitInfo,
    heldout_info: SplitInfo,
    *,
    seed: int,
    num_data_streams: int | None,
  ):
    self._data, self._strategy, self._seed = data, strategy, seed
    self.train_info, self.heldout_info = train_info, heldout_info
    self.num_data_streams = num_data_streams
    self.batch_size = data.batch_size
    self.heldout_steps = evaluation_steps(heldout_info, data.batch_size)
    self._wait_timer = WaitTimer()

  def training(self, start: int):
    """Returns distributed batches from batch number `start` of the order on.

    Raises:
      UserError: if the hosts cannot share the data streams equally, or the
        batch does not divide among them.
    """

    def make_dataset(context):
      hosts = context.num_input_pipelines
      replicas = context.num_replicas_in_sync // hosts
      self.num_data_streams = self.num_data_streams or hosts
      numbers = streams_of_host(
        context.input_pipeline_id, hosts, self.num_data_streams
      )
      # Every stream's batch is split into as few parts as let each replica
      # join the same number of them.
      parts = replicas // math.gcd(replicas, len(numbers))
      parts_per_replica = parts * len(numbers) // replicas
      self._check_batch(parts)
      streams = [
        self._data.train_split.training_batches(
          self.train_info,
          stream=self._stream(number),
          start_step=start,
          replicas=parts,
        )
        for number in numbers
      ]
      batches = _interleave(streams, parts, parts_per_replica)
      return self._wait_timer.timed(batches)

    return self._strategy.distribute_datasets_from_function(make_dataset)

  def names(self, first: int, end: int) -> list[tuple[int, str]]:
    """Returns (batch number, file name) of the examples of [first, end)."""
    split, fields = self._data.train_split, self.train_info.fields
    numbered_names = []
    for number in range(first, end):
      for index in range(self.num_data_streams):
        stream = self._stream(index)
        examples = split.training_examples(
          self.train_info, stream=stream, start_step=number
        )
        count = split.examples_per_step(stream.batch_size)
        for _, record in examples.take(count).as_numpy_iterator():
          numbered_names.append((number, read_filename(record, fields)))
    return numbered_names

  def _check_batch(self, parts: int) -> None:
    size, divisor = self._data.batch_size, self.num_data_streams * parts
    if size % divisor:
      raise UserError(
        f"BATCH_SIZE = {size} does not divide among {self.num_data_streams}"
        f" data streams, {parts} batches each; bind BATCH_SIZE to a multiple"
        f" of {divisor}, or run_config.DataConfig.num_data_streams to fewer."
      )

  def _stream(self, index: int) -> DataStream:
    return DataStream(
      batch_size=self._data.batch_size // self.num_data_streams,
      shuffle_buffer=self._data.shuffle_buffer,
      seed=self._seed,
      index=index,
      num_streams=self.num_data_streams,
    )

  def _profile_stages(self) -> dict[str, float]:
    split = self._data.train_split
    stream = DataStream(batch_size=1, shuffle_buffer=64, seed=0)
    return profile_stages(
      split.training_examples(self.train_info, stream=stream, start_step=0),
      (*split.transforms, *split.augmentation.transforms),
      split.invalid_records.validate,
    )

  def heldout(self, passes: int = 1):
    """Returns distributed batches with every held-out image once a pass.

    A pass has `heldout_steps` batches. To open an iterator takes a second.
    """

    def make_dataset(context):
      hosts = context.num_input_pipelines
      batches = self._data.heldout_split.evaluation_batches(
        self.heldout_info,
        host_batch=self._data.batch_size // hosts,
        replicas=context.num_replicas_in_sync // hosts,
        host=context.input_pipeline_id,
        num_hosts=hosts,
      )
      return batches.repeat(passes)

    return self._strategy.distribute_datasets_from_function(make_dataset)

  def monitor(self) -> InputMonitor:
    """Returns a monitor of the training batches."""
    return InputMonitor(
      self._wait_timer,
      profile=self._profile_stages,
      invalid_records=self._data.train_split.invalid_records,
      max_invalid_fraction=self._data.max_invalid_fraction,
    )


def streams_of_host(host: int, hosts: int, num_data_streams: int) -> range:
  """Returns the numbers of the data streams that host 0, 1, ... reads.

  Raises:
    UserError: if the hosts cannot share them equally.
  """
  if num_data_streams % hosts:
    raise UserError(
      f"this run's order of examples has {num_data_streams} data streams, which"
      f" {hosts} hosts cannot share equally; use a number of hosts that divides"
      " it, or bind run_config.DataConfig.num_data_streams to a multiple of it"
      " in another --workdir."
    )
  count = num_data_streams // hosts
  return range(host * count, (host + 1) * count)


def _interleave(
  streams: list[tf.data.Dataset], parts: int, parts_per_replica: int
) -> tf.data.Dataset:
  """Takes `parts` batches of each stream in turn and joins them per replica."""
  if len(streams) == 1:
    return streams[0]
  turns = tf.data.Dataset.range(len(streams) * parts)
  turns = turns.map(lambda i: i // parts).repeat()
  batches = tf.data.Dataset.choose_from_datasets(streams, turns)
  if parts_per_replica > 1:
    batches = batches.batch(parts_per_replica, drop_remainder=True)
    batches = batches.map(flatten_leading_axes)
  return batches


class InputMonitor:
  """Logs the fraction of time spent waiting for data; bounds invalid examples.

  If more than 5 % of an interval is spent waiting, it reports the slowest stage
  once; `profile` measures {stage: seconds per image}. The first interval of an
  iterator is exempt, since it fills buffers. `max_invalid_fraction`, in [0, 1],
  is of all examples that this process has read.
  """

  def __init__(
    self,
    wait_timer: WaitTimer,
    *,
    profile: Callable[[], dict[str, float]],
    invalid_records: InvalidRecords,
    max_invalid_fraction: float,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._wait_timer, self._profile = wait_timer, profile
    self._invalid_records = invalid_records
    self._max_invalid_fraction = max_invalid_fraction
    self._clock, self._interval_start = clock, 0.0
    self._intervals, self._sum_of_fractions = 0, 0.0
    self._filling_buffers, self._reported = True, False

  def start(self) -> None:
    """Marks that an iterator was opened, whose buffers are still empty."""
    self._filling_buffers = True

  def start_interval(self) -> None:
    """Starts measuring an interval."""
    self._wait_timer.reset()
    self._interval_start = self._clock()

  def end_interval(self, record: dict[str, float]) -> None:
    """Adds input_wait_fraction to a record, and checks invalid_examples.

    Without a measure of waiting, as with deterministic operations, it is left
    out.

    Raises:
      UserError: if too many examples were invalid.
    """
    if (waited := self._wait_timer.reset()) is not None:
      self._check_waiting(waited, record)
    self._filling_buffers = False
    fraction = record["invalid_examples"]
    self._intervals += 1
    self._sum_of_fractions += fraction
    if fraction:
      self._invalid_records.collect()
    mean = self._sum_of_fractions / self._intervals
    if mean > self._max_invalid_fraction:
      raise UserError(
        f"{mean:.2%} of the images read were invalid, more than"
        " run_config.DataConfig.max_invalid_fraction ="
        f" {self._max_invalid_fraction:.2%} (including prefetched ones:"
        f" {self._invalid_records}); repair the shards (gin/check_shards.gin"
        " lists the causes) or bind a larger fraction."
      )

  def _check_waiting(self, waited: float, record: dict[str, float]) -> None:
    seconds = max(self._clock() - self._interval_start, 1e-9)
    fraction = record["input_wait_fraction"] = min(waited / seconds, 1.0)
    slow = fraction > _SLOW_FRACTION and not self._filling_buffers
    if slow and not self._reported:
      self._reported = True
      self._report_stages(fraction)

  def _report_stages(self, waited: float) -> None:
    costs = self._profile()
    LOGGER.warning(
      "Training waits for data, %.0f %% of the last interval; slowest is %s"
      " (ms per image on this host: %s); docs/data.md says what helps.",
      100 * waited,
      max(costs, key=costs.get),
      ", ".join(f"{name} {1e3 * cost:.2f}" for name, cost in costs.items()),
    )
