"""What a run reads: batches for the strategy, and a watch over them."""

from __future__ import annotations

import logging
import math
import time

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.data.loading import side_by_side
from nfnets_tf.data.stages import stage_costs
from nfnets_tf.data.tfrecords import parse_filenames
from nfnets_tf.data.waiting import Waiting
from nfnets_tf.errors import UserError, require_fraction

LOGGER = logging.getLogger("nfnets_tf")

_SLOW_SHARE = 0.05


class Inputs:
  """The training and held-out batches of one process.

  Training's order of examples is made of equal parts, and each host reads some
  of them, so that a run goes on in the same order with fewer or more hosts.

  Args:
    job: the `train.TrainJob` that says what is read.
    strategy: for whose replicas.
    train: index of the training split.
    heldout: index of the held-out split.
    parts: of the order, a multiple of the number of hosts; None is that number.

  Attributes:
    parts: as given, or as it turned out in `training`.
  """

  def __init__(
    self,
    job,
    strategy: tf.distribute.Strategy,
    train: SplitInfo,
    heldout: SplitInfo,
    *,
    parts: int | None,
  ):
    self._job, self._strategy = job, strategy
    self._train, self._heldout = train, heldout
    self.parts = parts
    self._waiting = Waiting()

  def training(self, start: int):
    """Returns distributed batches from number `start` of the order on."""

    def make(context):
      hosts = context.num_input_pipelines
      replicas = context.num_replicas_in_sync // hosts
      self.parts = self.parts or hosts
      own = parts_of(context.input_pipeline_id, hosts, self.parts)
      pieces = replicas // math.gcd(replicas, len(own))
      joined = pieces * len(own) // replicas
      self._check_batch(pieces)
      parts = [
        self._job.train_split.training_batches(
          self._train, start_step=start, replicas=pieces, **self._of_part(part)
        )
        for part in own
      ]
      return self._waiting.timed(_in_turn(parts, pieces, joined))

    return self._strategy.distribute_datasets_from_function(make)

  def names(self, first: int, end: int) -> list[tuple[int, str]]:
    """Returns (number of the batch, name) of all examples of some batches."""
    split, fields = self._job.train_split, self._train.fields
    found = []
    for number in range(first, end):
      for part in range(self.parts):
        options = self._of_part(part)
        examples = split.training_examples(
          self._train, start_step=number, **options
        )
        count = split.examples_a_step(options["host_batch"])
        for batch in examples.take(count).map(lambda _, x: x).batch(count):
          names = parse_filenames(batch, fields).numpy()
          found += [(number, x.decode(errors="replace")) for x in names]
    return found

  def _check_batch(self, pieces: int) -> None:
    size, whole = self._job.batch_size, self.parts * pieces
    if size % whole:
      raise UserError(
        f"BATCH_SIZE = {size} does not divide among {self.parts} parts of the"
        f" order of examples, {pieces} batches each; bind BATCH_SIZE to a"
        f" multiple of {whole}, or train.TrainJob.parts to fewer."
      )

  def _of_part(self, part: int) -> dict:
    """Returns how a part of the order is read, as if by a host of its own."""
    job = self._job
    return {
      "host_batch": job.batch_size // self.parts,
      "shuffle_buffer": job.shuffle_buffer,
      "seed": job.seed,
      "host": part,
      "num_hosts": self.parts,
    }

  def heldout(self):
    """Returns distributed batches that hold every held-out image once."""

    def make(context):
      hosts = context.num_input_pipelines
      return self._job.heldout_split.evaluation_batches(
        self._heldout,
        host_batch=self._job.batch_size // hosts,
        replicas=context.num_replicas_in_sync // hosts,
        host=context.input_pipeline_id,
        num_hosts=hosts,
      )

    return self._strategy.distribute_datasets_from_function(make)

  def watch(self) -> DataWatch:
    """Returns the callback that looks after training's batches."""
    job = self._job
    return DataWatch(
      self._waiting,
      costs=lambda: stage_costs(job.train_split, self._train),
      faults=job.train_split.faults,
      max_bad_share=job.max_bad_share,
    )


def parts_of(host: int, hosts: int, parts: int) -> range:
  """Returns the parts of the order that a host reads.

  Raises:
    UserError: if hosts cannot share them equally.
  """
  if parts % hosts:
    raise UserError(
      f"this run's order of examples is made of {parts} parts, which {hosts}"
      " hosts cannot share equally; use a number of hosts that divides it, or"
      " bind train.TrainJob.parts to a multiple of it in another --workdir."
    )
  each = parts // hosts
  return range(host * each, (host + 1) * each)


def _in_turn(
  parts: list[tf.data.Dataset], pieces: int, joined: int
) -> tf.data.Dataset:
  """Takes `pieces` batches of each part in turn, and joins some to one."""
  if len(parts) == 1:
    return parts[0]
  turns = tf.data.Dataset.range(len(parts) * pieces).map(lambda i: i // pieces)
  batches = tf.data.Dataset.choose_from_datasets(parts, turns.repeat())
  if joined > 1:
    batches = batches.batch(joined, drop_remainder=True).map(side_by_side)
  return batches


class DataWatch(keras.callbacks.Callback):
  """Logs the share of time that was waited for data, and bounds bad records.

  When more than 5 % is waited, it says once which stage is slow. The first
  interval of a call of `fit`, which fills buffers, is not judged.

  Args:
    waiting: times the batches.
    costs: measures {stage: seconds an image}.
    faults: counts the records that could not be used.
    max_bad_share: of all that this process has read, in [0, 1].
    clock: returns seconds.

  Raises:
    UserError: if the share is none, or, in training, if it is exceeded.
  """

  def __init__(
    self, waiting, *, costs, faults, max_bad_share: float, clock=time.monotonic
  ):
    super().__init__()
    require_fraction("train.TrainJob.max_bad_share", max_bad_share)
    self._waiting, self._costs, self._faults = waiting, costs, faults
    self._max_bad_share = max_bad_share
    self._clock, self._begin = clock, 0.0
    self._intervals, self._unused = 0, 0.0
    self._filling, self._told = True, False

  def on_train_begin(self, logs=None):
    self._filling = True

  def on_epoch_begin(self, epoch, logs=None):
    self._waiting.take()
    self._begin = self._clock()

  def on_epoch_end(self, epoch, logs=None):
    taken = max(self._clock() - self._begin, 1e-9)
    share = min(self._waiting.take() / taken, 1.0)
    logs["waiting_for_data"] = share
    if share > _SLOW_SHARE and not self._filling and not self._told:
      self._told = True
      self._tell(share)
    self._filling = False
    self._intervals += 1
    self._unused += logs["invalid_examples"]
    if logs["invalid_examples"]:
      self._faults.collect()
    bad = self._unused / self._intervals
    if bad > self._max_bad_share:
      raise UserError(
        f"{bad:.2%} of the images that were read could not be used, more than"
        f" train.TrainJob.max_bad_share = {self._max_bad_share:.2%} (with what"
        f" was read ahead: {self._faults}); repair the shards"
        " (gin/check_shards.gin lists what is wrong) or bind a larger share."
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
