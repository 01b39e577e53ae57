"""The training job: builds a run from its configuration and runs it."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext

import tensorflow as tf

from nfnets_tf.config import bound_arguments
from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.errors import UserError, require, translate_tf_errors
from nfnets_tf.fileio import latest_checkpoint
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import check_image_size
from nfnets_tf.progress import activity
from nfnets_tf.ranges import SEED, accepts, built, function, optional
from nfnets_tf.train import dry_run
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.data_identity import record_data
from nfnets_tf.train.distribution import (
  Workers,
  describe,
  slice_hosts,
  watch_hosts,
)
from nfnets_tf.train.finish import finish_run, summarize
from nfnets_tf.train.inputs import Inputs
from nfnets_tf.train.loop import Trainer
from nfnets_tf.train.rollback import Recovery
from nfnets_tf.train.run_config import (
  DataConfig,
  DeviceConfig,
  ModelConfig,
  OptimizationConfig,
  Schedule,
)
from nfnets_tf.train.run_dir import RunDir, RunLock
from nfnets_tf.train.train_step import check_micro_batches

LOGGER = logging.getLogger("nfnets_tf")


@accepts(
  model=built("@run_config.ModelConfig()"),
  optimization=built("@run_config.OptimizationConfig()"),
  data=built("@run_config.DataConfig()"),
  schedule=built("@run_config.Schedule()"),
  devices=built("@run_config.DeviceConfig()"),
  recovery=built("@rollback.Recovery()"),
  export=optional(function("@export.Exporter()")),
  report=optional(function("@eval_report.ClassificationReport()")),
  seed=SEED,
)
@dataclasses.dataclass
class TrainJob:
  """The job that trains, evaluates and exports one network.

  Attributes:
    model: the network and its initial weights.
    optimization: the optimizer, its learning rate, and SAM.
    data: the splits and how they are read.
    schedule: the length of the run and its intervals.
    devices: where it runs.
    recovery: when the run rolls back after steps that are not finite.
    export: writes a SavedModel; a `serving.export.Exporter`, or None for no
      SavedModel, as in a sweep.
    report: writes a `eval_report.ClassificationReport` at the end, or None.
    seed: of initial weights and data order.
  """

  model: ModelConfig
  optimization: OptimizationConfig
  data: DataConfig
  schedule: Schedule
  devices: DeviceConfig
  recovery: Recovery
  export: Callable[..., str] | None
  report: Callable[..., object] | None
  seed: int

  def plan(self) -> str:
    """Describes the run; creates no weights and reads no data."""
    self.data.check_copies()
    self.check_model()
    lines = dry_run.describe_run(
      self.model,
      self.optimization,
      self.data,
      self.schedule,
      self.devices,
      classifier_options=self.classifier_options(),
    )
    return dry_run.format_table(lines)

  def classifier_options(self) -> dict[str, object]:
    """Returns the arguments that the configuration gives the classifier."""
    parameters = inspect.signature(Classifier).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    return {**defaults, **bound_arguments(self.model.classifier)}

  def _keeps_averages(self) -> bool:
    return self.classifier_options()["ema_decay"] is not None

  def check_model(self, replicas: int = 1) -> None:
    """Checks that the model fits the data; creates no weights.

    Args:
      replicas: that share a batch.

    Raises:
      UserError: if it does not, or cannot be built.
    """
    classifier = cost.abstractly(self._make_classifier)
    self._check_classifier(classifier, self.data.batch_size // replicas)

  def figures(self, network: keras.Model | None = None) -> dict[str, float]:
    """Returns the cost of the run in numbers; see `dry_run.estimate_costs`."""
    return dry_run.estimate_costs(
      self.model,
      self.optimization,
      self.data,
      self.schedule,
      self.devices,
      averages=self._keeps_averages(),
      network=network,
    )

  def run(self, context: RunContext) -> str:
    """Trains, evaluates and exports, or resumes where an earlier call stopped.

    Args:
      context: its work directory keeps the configuration as config.gin.

    Returns:
      The summary of the finished run.

    Raises:
      UserError: before training, if the data, the devices or the checkpoints do
        not fit the configuration, or another process uses the work directory.
      Diverged: if training stays non-finite.
      RunError: if a file, a worker or the file system fails.
      Preempted: after SIGTERM, when everything is saved.
    """
    files = RunDir(context.workdir)
    files.check_layout()
    result = files.read_result()
    if result is not None and result["step"] >= self.schedule.total_steps:
      LOGGER.info("This run has finished already; nothing is trained again.")
      return summarize(result, files)
    files.check_writable()
    strategy = self.devices.strategy()
    workers, hosts = Workers(strategy), slice_hosts(strategy)
    translating = translate_tf_errors(
      worker=workers.index,
      num_workers=workers.count,
      num_hosts=len(hosts),
      describe_memory=lambda: self._describe_memory(strategy),
    )
    with translating, watch_hosts(hosts):
      self._check_batch(strategy)
      # Workers share the directory; the chief, which writes, holds the lock.
      lock = RunLock(files.root).hold() if workers.chief else nullcontext()
      with lock:
        self._train(context, files, strategy, workers)
    return summarize(files.read_result(), files)

  def build_classifier(self, strategy: tf.distribute.Strategy) -> Classifier:
    """Builds and compiles the model under a strategy.

    Raises:
      UserError: if a replica's batch does not divide into the micro-batches.
    """
    optimization = self.optimization
    with strategy.scope():
      classifier = self._make_classifier()
      self._check_classifier(
        classifier, self.data.batch_size // strategy.num_replicas_in_sync
      )
      classifier.compile(
        optimization.optimizer(learning_rate=optimization.learning_rate)
      )
    return classifier

  def _make_classifier(self) -> Classifier:
    # Random draws follow from the layers' names, which must not depend on what
    # was built before.
    keras.backend.reset_uids()
    return self.model.classifier(
      network=self.model.network(),
      sam=self.optimization.sam,
      pruning=self.optimization.pruning,
    )

  def _check_classifier(self, classifier: Classifier, examples: int) -> None:
    """Checks that it fits the splits and a replica's number of examples."""
    network, expected = classifier.network, classifier.expected_data()
    if expected is not None:
      require(
        expected.num_classes == self.data.num_classes,
        "the number of the network's outputs",
        expected.num_classes,
        f"NUM_CLASSES = {self.data.num_classes}",
      )
    for part in (self.data.train_split, self.data.heldout_split):
      shape = part.image_shape()
      check_image_size(network, shape[0])
      wanted = tf.TensorShape(expected and expected.images[1:])
      require(
        wanted.is_compatible_with(shape),
        "the network's input_shape",
        wanted.rank and tuple(wanted),
        f"what the transforms of the {part.split!r} split make, {shape}",
      )
    check_micro_batches(examples, classifier.micro_batches)

  def open_trainer(
    self, files: RunDir, strategy: tf.distribute.Strategy
  ) -> Trainer:
    """Builds the run under a strategy and restores its last checkpoint.

    Nothing is written.

    Raises:
      UserError: if data or checkpoints do not fit the configuration.
    """
    train, heldout = self._read_indexes()
    keras.utils.set_random_seed(self.seed)
    keras.mixed_precision.set_global_policy(self.devices.policy)
    tf.config.optimizer.set_experimental_options(
      {"layout_optimizer": self.devices.gpu_layout == "auto"}
    )
    classifier = self.build_classifier(strategy)
    streams = files.read_num_data_streams() or self.data.num_data_streams
    inputs = Inputs(
      self.data,
      strategy,
      train,
      heldout,
      seed=self.seed,
      num_data_streams=streams,
    )
    return Trainer(
      classifier,
      inputs,
      files,
      Workers(strategy),
      schedule=self.schedule,
      learning_rate=self.optimization.learning_rate,
      recovery=self.recovery,
      init_weights=self.model.init_weights,
      seed=self.seed,
    )

  def _train(
    self,
    context: RunContext,
    files: RunDir,
    strategy: tf.distribute.Strategy,
    workers: Workers,
  ) -> None:
    if latest_checkpoint(files.checkpoints) is None:
      self.model.init_weights.check()
    if self.data.prepare is not None:  # which may take hours
      self.check_model(strategy.num_replicas_in_sync)
    self._prepare_data(workers)
    with activity("Opening the data and building the network"):
      trainer = self.open_trainer(files, strategy)
    inputs = trainer.inputs
    if workers.chief:
      # Not before: a refused configuration must not claim the work directory.
      record_data(
        files.root,
        num_data_streams=inputs.num_data_streams,
        train=inputs.train_info,
        heldout=inputs.heldout_info,
      )
      files.write_config(context.config_text)
      context.on_start()
    self._log_start(strategy, inputs.train_info)
    trainer.fit(context.terminal)
    record = trainer.evaluate()
    if workers.chief:
      with activity("Writing the report and the SavedModel"):
        finish_run(
          trainer,
          files,
          record,
          variant=self.model.variant,
          data=self.data,
          export=self.export,
          report=self.report,
        )
    workers.barrier()

  def _prepare_data(self, workers: Workers) -> None:
    prepare = self.data.prepare
    if prepare is not None and workers.chief and prepare():
      LOGGER.info("Wrote the shards in %s.", self.data.train_split.directory)
    workers.barrier()

  def _log_start(self, strategy: tf.distribute.Strategy, train: SplitInfo):
    LOGGER.info(
      "Training NFNet %s on %s: %s steps of %s images, %s images per epoch from"
      " %d shards in %s.",
      self.model.variant,
      describe(strategy),
      f"{self.schedule.total_steps:,}",
      f"{self.data.batch_size:,}",
      f"{train.num_examples:,}",
      len(train.files),
      self.data.train_split.directory,
    )
    for _, line in dry_run.describe_gradient(self.optimization.sam):
      LOGGER.info("Gradients by %s.", line)

  def _describe_memory(self, strategy: tf.distribute.Strategy) -> str:
    memory = cost.estimate_memory(
      cost.abstractly(self.model.network),
      image_size=self.data.train_split.image_shape()[0],
      sam=self.optimization.sam,
      policy=self.devices.policy,
      averages=self._keeps_averages(),
    )
    replicas = strategy.num_replicas_in_sync
    return memory.describe(self.data.batch_size // replicas)

  def _check_batch(self, strategy: tf.distribute.Strategy) -> None:
    replicas, batch_size = strategy.num_replicas_in_sync, self.data.batch_size
    self.data.check_copies(replicas)
    if batch_size % replicas:
      raise UserError(
        f"BATCH_SIZE = {batch_size} does not divide among the {replicas}"
        f" replicas of {describe(strategy)}; bind BATCH_SIZE to a multiple of"
        f" {replicas}."
      )

  def _read_indexes(self) -> tuple[SplitInfo, SplitInfo]:
    split, num_examples = self.data.train_split, self.data.num_examples
    train, heldout = split.read_info(), self.data.heldout_split.read_info()
    if set(train.files) & set(heldout.files):
      LOGGER.warning(
        "The held-out images of %r are trained on: their accuracy says nothing"
        " of others.",
        split.directory,
      )
    if train.num_examples != num_examples:
      raise UserError(
        f"the {split.split!r} split in {split.directory!r} has"
        f" {train.num_examples:,} examples, but NUM_EXAMPLES ="
        f" {num_examples:,}; bind NUM_EXAMPLES to {train.num_examples} or"
        " DATA_DIR to other data."
      )
    return train, heldout
