"""A training run: builds nothing itself, connects everything.

`TrainJob` receives factories and data from the configuration and has no
defaults: what is not bound is an error before anything is built.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.data.pipeline import Split
from nfnets_tf.errors import UserError, require_int
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train import plan
from nfnets_tf.train.breakdown import explained
from nfnets_tf.train.checkpoint_files import newest_in
from nfnets_tf.train.distribution import Workers, describe
from nfnets_tf.train.pretrained import Start
from nfnets_tf.train.recovery import Recovery
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.session import Session
from nfnets_tf.train.summary import summarize

LOGGER = logging.getLogger("nfnets_tf")


class TrainJob:
  """The job that trains, evaluates and exports one network.

  Args:
    variant: name of the network's size, for the reports.
    network: makes the network, once, under the strategy.
    classifier: makes the training step around `network=` with `sam=`.
    sam: a `SAM`, or None for plain gradients.
    optimizer: makes the optimizer from `learning_rate=`.
    strategy: makes the `tf.distribute.Strategy`.
    export: writes a SavedModel; a `serving.export.Exporter`, or None for no
      SavedModel, as in a sweep.
    compute: predicts core-hours; a `scaling.compute.TpuV4`.
    prepare: called before reading, to write shards that are not there yet; or
      None.
    start: gives the network its first weights; a `pretrained.Start`.
    report: called at the end, a `report.ClassificationReport`, or None.
    train_split: what is trained on.
    heldout_split: what is evaluated on.
    learning_rate: the schedule.
    num_classes: of the network and the labels.
    num_examples: of the training split, an epoch.
    batch_size: examples a step, over all replicas.
    total_steps: of the run.
    policy: Keras' precision policy, "float32" or "mixed_bfloat16".
    seed: of initial weights and data order.
    shuffle_buffer: examples of each part of the order that are held in memory
      for shuffling.
    max_bad_share: of the images read, from 0 to 1; more bad ones end the run.
    steps_per_execution: steps between returns to Python.
    log_every: steps, a multiple of `steps_per_execution`.
    evaluate_every: steps, a multiple of `log_every`.
    checkpoint_every: steps, a multiple of `log_every`.
    checkpoints_to_keep: number of the newest checkpoints that stay, beside the
      best one.
    recovery: what happens when steps are not finite; a `recovery.Recovery`.
    parts: that the order of examples is made of, for as many hosts or any
      number that divides it; None is the number that a run begins with.
  """

  def __init__(
    self,
    *,
    variant: str,
    network: Callable[[], keras.Model],
    classifier: Callable[..., keras.Model],
    sam: SAM | None,
    optimizer: Callable[..., keras.optimizers.Optimizer],
    strategy: Callable[[], tf.distribute.Strategy],
    export: Callable[..., str] | None,
    compute,
    prepare: Callable[[], bool] | None,
    start: Start,
    report: Callable[..., dict] | None,
    train_split: Split,
    heldout_split: Split,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    num_classes: int,
    num_examples: int,
    batch_size: int,
    total_steps: int,
    policy: str,
    seed: int,
    shuffle_buffer: int,
    max_bad_share: float,
    steps_per_execution: int,
    log_every: int,
    evaluate_every: int,
    checkpoint_every: int,
    checkpoints_to_keep: int,
    recovery: Recovery,
    parts: int | None,
  ):
    self.variant = variant
    self.network = network
    self.classifier = classifier
    self.sam = sam
    self.optimizer = optimizer
    self.strategy = strategy
    self.export = export
    self.compute = compute
    self.prepare = prepare
    self.start = start
    self.report = report
    self.train_split = train_split
    self.heldout_split = heldout_split
    self.learning_rate = learning_rate
    self.num_classes = num_classes
    self.num_examples = num_examples
    self.batch_size = batch_size
    self.total_steps = total_steps
    self.policy = policy
    self.seed = seed
    self.shuffle_buffer = shuffle_buffer
    self.max_bad_share = max_bad_share
    self.steps_per_execution = steps_per_execution
    self.log_every = log_every
    self.evaluate_every = evaluate_every
    self.checkpoint_every = checkpoint_every
    self.checkpoints_to_keep = checkpoints_to_keep
    self.recovery, self.parts = recovery, parts
    self._check_numbers()
    self._check_intervals()

  def _check_numbers(self) -> None:
    for name in (
      "num_classes",
      "num_examples",
      "batch_size",
      "total_steps",
      "shuffle_buffer",
      "steps_per_execution",
      "log_every",
      "evaluate_every",
      "checkpoint_every",
      "checkpoints_to_keep",
    ):
      require_int(f"train.TrainJob.{name}", getattr(self, name), 1)
    if self.parts is not None:
      require_int("train.TrainJob.parts", self.parts, 1)

  def _check_intervals(self) -> None:
    for unit, name in (
      ("steps_per_execution", "log_every"),
      ("log_every", "evaluate_every"),
      ("log_every", "checkpoint_every"),
    ):
      whole, part = getattr(self, name), getattr(self, unit)
      if part < 1 or whole % part:
        raise UserError(
          f"train.TrainJob.{name} = {whole} is not a multiple of"
          f" train.TrainJob.{unit} = {part}; bind one of them to a number that"
          " fits."
        )

  def plan(self) -> str:
    """Returns what would run; allocates no weights and reads no data."""
    return plan.table(plan.describe_run(self))

  def figures(self, network: keras.Model | None = None) -> dict[str, float]:
    """Returns what it would cost, in numbers; see `plan.figures`."""
    return plan.figures(self, network)

  def run(self, context: RunContext) -> str:
    """Trains, evaluates and exports; goes on where an earlier call stopped.

    Args:
      context: its work directory keeps the configuration as config.gin.

    Returns:
      The summary of the finished run.

    Raises:
      UserError: before training, if the data, the devices or the checkpoints do
        not fit the configuration.
    """
    files = RunDir(context.workdir)
    result = files.read_result()
    if result is not None and result["step"] >= self.total_steps:
      LOGGER.info("This run is done already; nothing is trained again.")
      return summarize(result, files)
    files.check_writable()
    strategy = self.strategy()
    workers = Workers(strategy)
    with explained(self, strategy):
      self._check_batch(strategy)
      if newest_in(files.checkpoints) is None:
        self.start.check()
      self._prepare(workers)
      train, heldout = self._read_indexes()
      parts = files.read_num_data_streams() or self.parts
      session = Session(self, files, strategy, train, heldout, parts=parts)
      if workers.chief:
        # Not before: what was refused must not bind the folder.
        parts = session.inputs.parts
        files.record_data(num_data_streams=parts, train=train, heldout=heldout)
        files.write_config(context.config_text)
        context.on_start()
      session.fit(context.terminal)
      session.finish()
    return summarize(files.read_result(), files)

  def _prepare(self, workers: Workers) -> None:
    if self.prepare is not None and workers.chief and self.prepare():
      LOGGER.info("Wrote the shards in %s.", self.train_split.directory)
    workers.meet()

  def _check_batch(self, strategy: tf.distribute.Strategy) -> None:
    replicas = strategy.num_replicas_in_sync
    if self.batch_size % replicas:
      raise UserError(
        f"BATCH_SIZE = {self.batch_size} does not divide among the {replicas}"
        f" replicas of {describe(strategy)}; bind BATCH_SIZE to a multiple of"
        f" {replicas}."
      )

  def _read_indexes(self) -> tuple[SplitInfo, SplitInfo]:
    train, heldout = self.train_split.index(), self.heldout_split.index()
    if train.num_examples != self.num_examples:
      raise UserError(
        f"the {self.train_split.split!r} split in"
        f" {self.train_split.directory!r} has {train.num_examples:,} examples,"
        f" but NUM_EXAMPLES = {self.num_examples:,}; bind NUM_EXAMPLES to"
        f" {train.num_examples} or DATA_DIR to other data."
      )
    return train, heldout
