"""What a run reads: batches for the strategy, and a watch over them."""

from __future__ import annotations

import logging
import math
import time

import tensorflow as tf

from nfnets_tf.data.dataset_info import SplitInfo, evaluation_steps
from nfnets_tf.data.loading import flatten_leading_axes
from nfnets_tf.data.pipeline import DataStream
from nfnets_tf.data.profiling import WaitTimer, profile_stages
from nfnets_tf.data.tfrecords import parse_filenames
from nfnets_tf.errors import UserError
from nfnets_tf.train.run_config import DataConfig

LOGGER = logging.getLogger("nfnets_tf")

_SLOW_SHARE = 0.05


class Inputs:
  """The training and held-out batches of one process.

  Training's order of examples is made of equal streams, and each host reads
  some of them, so that a run resumes in the same order on fewer or more hosts.

  Args:
    data: what is read.
    strategy: for whose replicas.
    train_info: of the training split.
    heldout_info: of the held-out split.
    seed: of the order.
    num_data_streams: a multiple of the number of hosts; None is that number.

  Attributes:
    train_info: of the training split.
    heldout_info: of the held-out split.
    num_data_streams: as given, or as it turned out in `training`.
    heldout_steps: number of batches of `heldout`.
    batch_size: over all replicas.
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
    """Returns distributed batches from number `start` of the order on."""

    def make(context):
      hosts = context.num_input_pipelines
      replicas = context.num_replicas_in_sync // hosts
      self.num_data_streams = self.num_data_streams or hosts
      numbers = streams_of_host(
        context.input_pipeline_id, hosts, self.num_data_streams
      )
      pieces = replicas // math.gcd(replicas, len(numbers))
      joined = pieces * len(numbers) // replicas
      self._check_batch(pieces)
      streams = [
        self._data.train_split.training_batches(
          self.train_info,
          stream=self._stream(number),
          start_step=start,
          replicas=pieces,
        )
        for number in numbers
      ]
      return self._wait_timer.timed(_interleave(streams, pieces, joined))

    return self._strategy.distribute_datasets_from_function(make)

  def names(self, first: int, end: int) -> list[tuple[int, str]]:
    """Returns (number of the batch, name) of all examples of some batches."""
    split, fields = self._data.train_split, self.train_info.fields
    found = []
    for number in range(first, end):
      for index in range(self.num_data_streams):
        stream = self._stream(index)
        examples = split.training_examples(
          self.train_info, stream=stream, start_step=number
        )
        count = split.examples_per_step(stream.batch_size)
        for batch in examples.take(count).map(lambda _, x: x).batch(count):
          names = parse_filenames(batch, fields).numpy()
          found += [(number, x.decode(errors="replace")) for x in names]
    return found

  def _check_batch(self, pieces: int) -> None:
    size, whole = self._data.batch_size, self.num_data_streams * pieces
    if size % whole:
      raise UserError(
        f"BATCH_SIZE = {size} does not divide among {self.num_data_streams}"
        f" data streams, {pieces} batches each; bind BATCH_SIZE to a multiple"
        f" of {whole}, or run_config.DataConfig.num_data_streams to fewer."
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

  def heldout(self):
    """Returns distributed batches that hold every held-out image once."""

    def make(context):
      hosts = context.num_input_pipelines
      return self._data.heldout_split.evaluation_batches(
        self.heldout_info,
        host_batch=self._data.batch_size // hosts,
        replicas=context.num_replicas_in_sync // hosts,
        host=context.input_pipeline_id,
        num_hosts=hosts,
      )

    return self._strategy.distribute_datasets_from_function(make)

  def watch(self) -> DataWatch:
    """Returns the monitor of training's batches."""
    split = self._data.train_split
    return DataWatch(
      self._wait_timer,
      costs=self._profile_stages,
      invalid_records=split.invalid_records,
      max_invalid_fraction=self._data.max_invalid_fraction,
    )


def streams_of_host(host: int, hosts: int, num_data_streams: int) -> range:
  """Returns the numbers of the data streams that a host reads.

  Raises:
    UserError: if hosts cannot share them equally.
  """
  if num_data_streams % hosts:
    raise UserError(
      f"this run's order of examples has {num_data_streams} data streams, which"
      f" {hosts} hosts cannot share equally; use a number of hosts that divides"
      " it, or bind run_config.DataConfig.num_data_streams to a multiple of it"
      " in another --workdir."
    )
  each = num_data_streams // hosts
  return range(host * each, (host + 1) * each)


def _interleave(
  streams: list[tf.data.Dataset], pieces: int, joined: int
) -> tf.data.Dataset:
  """Takes `pieces` batches of each stream in turn, joining `joined` to one."""
  if len(streams) == 1:
    return streams[0]
  turns = tf.data.Dataset.range(len(streams) * pieces)
  turns = turns.map(lambda i: i // pieces).repeat()
  batches = tf.data.Dataset.choose_from_datasets(streams, turns)
  if joined > 1:
    batches = batches.batch(joined, drop_remainder=True).map(
      flatten_leading_axes
    )
  return batches


class DataWatch:
  """Logs the share of time that was waited for data, and bounds bad records.

  When more than 5 % is waited, it says once which stage is slow. The first
  interval of a call of `fit`, which fills buffers, is not judged.

  Args:
    wait_timer: times the batches.
    costs: measures {stage: seconds an image}.
    invalid_records: counts the invalid records.
    max_invalid_fraction: of all that this process has read, in [0, 1].
    clock: returns seconds.

  Raises:
    UserError: in training, if the fraction is exceeded.
  """

  def __init__(
    self,
    wait_timer,
    *,
    costs,
    invalid_records,
    max_invalid_fraction: float,
    clock=time.monotonic,
  ):
    self._wait_timer, self._costs = wait_timer, costs
    self._invalid_records = invalid_records
    self._max_invalid_fraction = max_invalid_fraction
    self._clock, self._begin = clock, 0.0
    self._intervals, self._unused = 0, 0.0
    self._filling, self._told = True, False

  def start(self) -> None:
    """Marks that an iterator was opened, whose buffers are still empty."""
    self._filling = True

  def start_interval(self) -> None:
    """Starts measuring an interval."""
    self._wait_timer.reset()
    self._begin = self._clock()

  def end_interval(self, record: dict[str, float]) -> None:
    """Adds input_wait_fraction to a record, and checks invalid_examples."""
    taken = max(self._clock() - self._begin, 1e-9)
    share = min(self._wait_timer.reset() / taken, 1.0)
    record["input_wait_fraction"] = share
    if share > _SLOW_SHARE and not self._filling and not self._told:
      self._told = True
      self._tell(share)
    self._filling = False
    self._intervals += 1
    self._unused += record["invalid_examples"]
    if record["invalid_examples"]:
      self._invalid_records.collect()
    bad = self._unused / self._intervals
    if bad > self._max_invalid_fraction:
      raise UserError(
        f"{bad:.2%} of the images that were read could not be used, more than"
        " run_config.DataConfig.max_invalid_fraction ="
        f" {self._max_invalid_fraction:.2%} (including what was prefetched:"
        f" {self._invalid_records}); repair the shards (gin/check_shards.gin"
        " lists the causes) or bind a larger fraction."
      )

  def _tell(self, share: float) -> None:
    costs = self._costs()
    slowest = max(costs, key=costs.get)
    LOGGER.warning(
      "Training waits for data, %.0f %% of the last interval; slowest is %s"
      " (ms an image on this host: %s); docs/data.md says what helps.",
      100 * share,
      slowest,
      ", ".join(f"{name} {1e3 * cost:.2f}" for name, cost in costs.items()),
    )
