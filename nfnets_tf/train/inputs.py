"""What a run reads: batches for the strategy, and a watch over them."""

from __future__ import annotations

import logging
import time

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.data.stages import stage_costs
from nfnets_tf.data.waiting import Waiting
from nfnets_tf.ops.errors import UserError, require_share

LOGGER = logging.getLogger("nfnets_tf")

_SLOW_SHARE = 0.05


class Inputs:
  """The training and held-out batches of one process.

  Args:
    job: the `run.Training` that says what is read.
    strategy: for whose replicas.
    train: index of the training split.
    heldout: index of the held-out split.
  """

  def __init__(
    self,
    job,
    strategy: tf.distribute.Strategy,
    train: SplitIndex,
    heldout: SplitIndex,
  ):
    self._job, self._strategy = job, strategy
    self._train, self._heldout = train, heldout
    self._waiting = Waiting()

  def training(self, start_step: int):
    """Returns distributed batches from step `start_step` on."""
    job = self._job

    def make(context):
      batches = job.train_split.training_batches(
        self._train,
        start_step=start_step,
        shuffle_buffer=job.shuffle_buffer,
        seed=job.seed,
        **self._share(context),
      )
      return self._waiting.timed(batches)

    return self._strategy.distribute_datasets_from_function(make)

  def heldout(self):
    """Returns distributed batches that hold every held-out image once."""
    return self._strategy.distribute_datasets_from_function(
      lambda context: self._job.heldout_split.evaluation_batches(
        self._heldout, **self._share(context)
      )
    )

  def watch(self) -> DataWatch:
    """Returns the callback that looks after training's batches."""
    job = self._job
    return DataWatch(
      self._waiting,
      costs=lambda: stage_costs(job.train_split, self._train),
      faults=job.train_split.faults,
      max_bad_share=job.max_bad_share,
    )

  def _share(self, context: tf.distribute.InputContext) -> dict:
    """What this host reads of every global batch."""
    hosts = context.num_input_pipelines
    return {
      "host_batch": self._job.batch_size // hosts,
      "replicas": context.num_replicas_in_sync // hosts,
      "host": context.input_pipeline_id,
      "num_hosts": hosts,
    }


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
    require_share("run.Training.max_bad_share", max_bad_share)
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
    self._unused += logs["unused"]
    if logs["unused"]:
      self._faults.collect()
    bad = self._unused / self._intervals
    if bad > self._max_bad_share:
      raise UserError(
        f"{bad:.2%} of the images that were read could not be used, more than"
        f" run.Training.max_bad_share = {self._max_bad_share:.2%} (with what"
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
