"""Configuration of a training run: one frozen dataclass for each concern.

There are no defaults: a missing gin binding is an error before anything is
built. Each class validates its numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from nfnets_tf.errors import require
from nfnets_tf.optim.pruning import PRUNING
from nfnets_tf.optim.sam import PERTURBATION
from nfnets_tf.ranges import (
  STEPS,
  accepts,
  built,
  function,
  integer,
  number,
  one_of,
  optional,
  transform,
)

if TYPE_CHECKING:
  import tensorflow as tf

  from nfnets_tf.data.pipeline import Split
  from nfnets_tf.keras_api import keras
  from nfnets_tf.models.weights import InitWeights
  from nfnets_tf.optim.pruning import Pruning
  from nfnets_tf.optim.sam import SAM


@accepts(
  network=function("@nfnet.NFNet"),
  classifier=function("@classifier.Classifier"),
  init_weights=built("@weights.InitWeights()"),
)
@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network, the model around it, and its initial weights.

  Attributes:
    variant: name of the network's size, for logs and reports.
    network: builds the network; called once, under the strategy's scope.
    classifier: builds the `Classifier` from `network=`, `sam=` and `pruning=`.
    init_weights: sets the initial weights, or leaves those of the initializers.
  """

  variant: str
  network: Callable[[], keras.Model]
  classifier: Callable[..., keras.Model]
  init_weights: InitWeights


@accepts(
  optimizer=function("@sgd.SGD"),
  learning_rate=built("@schedules.warmup_cosine()"),
  sam=PERTURBATION,
  pruning=PRUNING,
)
@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
  """The optimizer, its learning rate, SAM and pruning.

  Attributes:
    optimizer: builds the optimizer from `learning_rate=`.
    learning_rate: the schedule.
    sam: how gradients are taken at perturbed weights; None for plain gradients.
    pruning: how weights are set to zero; None for a dense network.
  """

  optimizer: Callable[..., keras.optimizers.Optimizer]
  learning_rate: keras.optimizers.schedules.LearningRateSchedule
  sam: SAM | None
  pruning: Pruning | None


@accepts(
  train_split=built("@train/pipeline.Split()"),
  heldout_split=built("@heldout/pipeline.Split()"),
  prepare=optional(transform("@shard_builder.ShardBuilder()")),
  num_classes=integer(2),
  num_examples=integer(1),
  batch_size=integer(1),
  shuffle_buffer=integer(1),
  max_invalid_fraction=number(0, 1),
  num_data_streams=optional(integer(1)),
)
@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The splits and how they are read.

  Attributes:
    train_split: examples to train on.
    heldout_split: examples to evaluate on.
    prepare: writes missing shards before they are read, and returns whether it
      had to; None if they exist.
    num_classes: of the network and the labels.
    num_examples: of the training split, an epoch.
    batch_size: examples per step, over all replicas.
    shuffle_buffer: examples of each data stream held in memory for shuffling.
    max_invalid_fraction: of the images read, in [0, 1]; the run fails when more
      than that cannot be used.
    num_data_streams: equal parts of the order of examples, which hosts share;
      None for as many as there are hosts when the run begins.

  Raises:
    UserError: if a number is out of range.
  """

  train_split: Split
  heldout_split: Split
  prepare: Callable[[], bool] | None
  num_classes: int
  num_examples: int
  batch_size: int
  shuffle_buffer: int
  max_invalid_fraction: float
  num_data_streams: int | None

  def check_copies(self, replicas: int = 1) -> None:
    """Checks that the copies of an image fit into a replica's batch.

    Args:
      replicas: that share a batch.

    Raises:
      UserError: if they do not.
    """
    copies = self.train_split.augmentation.multiplicity
    require(
      self.batch_size % (copies * replicas) == 0 or self.batch_size % replicas,
      "run_config.DataConfig.batch_size",
      self.batch_size,
      f"a multiple of {copies * replicas}, for MULTIPLICITY = {copies} on"
      f" {replicas} replica{'s' * (replicas > 1)}",
    )


@accepts(
  total_steps=STEPS,
  steps_per_execution=integer(1),
  log_every=integer(1),
  evaluate_every=integer(1),
  checkpoint_every=integer(1),
  checkpoints_to_keep=integer(1),
)
@dataclasses.dataclass(frozen=True)
class Schedule:
  """The length of a run and the intervals of its actions, in steps.

  Attributes:
    total_steps: of the run.
    steps_per_execution: steps of one call of the compiled training function.
    log_every: a multiple of `steps_per_execution`.
    evaluate_every: a multiple of `log_every`.
    checkpoint_every: a multiple of `log_every`.
    checkpoints_to_keep: number of the latest checkpoints that are kept, next to
      the best one.

  Raises:
    UserError: if a number is out of range, or is not the multiple it must be.
  """

  total_steps: int
  steps_per_execution: int
  log_every: int
  evaluate_every: int
  checkpoint_every: int
  checkpoints_to_keep: int

  def __post_init__(self):
    for unit, name in (
      ("steps_per_execution", "log_every"),
      ("log_every", "evaluate_every"),
      ("log_every", "checkpoint_every"),
    ):
      interval, step = getattr(self, name), getattr(self, unit)
      require(
        interval % step == 0,
        f"run_config.Schedule.{name}",
        interval,
        f"a multiple of run_config.Schedule.{unit} = {step}",
      )


@accepts(
  strategy=function("@distribution.auto"),
  policy=one_of("float32", "mixed_bfloat16"),
  compute=built("@compute.TpuV4()"),
  gpu_layout=one_of("auto", "NHWC"),
)
@dataclasses.dataclass(frozen=True)
class DeviceConfig:
  """The devices, their numeric precision and their cost.

  Attributes:
    strategy: creates the `tf.distribute.Strategy`.
    policy: Keras' precision policy, "float32" or "mixed_bfloat16".
    compute: predicts TPU core-hours; a `scaling.compute.TpuV4`.
    gpu_layout: "auto" lets TensorFlow choose the layout of images on a GPU,
      NCHW or NHWC, by GPU and precision; "NHWC" keeps that of the layers. No
      other device is concerned.
  """

  strategy: Callable[[], tf.distribute.Strategy]
  policy: str
  compute: object
  gpu_layout: str = "auto"
