"""A Keras model that trains and evaluates an image classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from nfnets_tf.errors import UserError, refuse_keras3
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import layers_by_stage, variables_by_stage
from nfnets_tf.models.sparse_kernels import sparse_convolutions
from nfnets_tf.models.weights import named_variables
from nfnets_tf.ops import stateless_random
from nfnets_tf.ops.losses import canonical_labels, softmax_cross_entropy
from nfnets_tf.optim import ema, param_groups
from nfnets_tf.optim.pruning import PRUNING, Pruning, PruningOptimizer
from nfnets_tf.optim.sam import PERTURBATION, SAM
from nfnets_tf.optim.unitwise import measure_gradients
from nfnets_tf.ranges import COUNT, RATE, SEED, accepts, each, number, optional
from nfnets_tf.train.checked_model import CheckedModel, refuse_other_losses
from nfnets_tf.train.metrics import (
  Scores,
  Telemetry,
  compute_example_metrics,
  count_examples,
)
from nfnets_tf.train.train_step import NonfiniteGuard, ReplicaBatch
from nfnets_tf.train.user_data import (
  Expected,
  canonical_weights,
  check_images,
  unpack_batch,
)

# Of ImageNet, in units of [0, 1]; the published weights expect them.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)

_serialize = keras.saving.serialize_keras_object
_deserialize = keras.saving.deserialize_keras_object


@keras.saving.register_keras_serializable(package="nfnets_tf")
@accepts(label_smoothing=RATE, ema_decay=optional(RATE), seed=SEED)
@accepts(sam=PERTURBATION, pruning=PRUNING)
@accepts(micro_batches=COUNT, layer_decay=number(above=0, most=1))
@accepts(mean_rgb=each(number(), 3), stddev_rgb=each(number(above=0), 3))
class Classifier(CheckedModel):
  """Trains a network on images and labels, as any Keras model.

    model = Classifier(NFNet("F0", num_classes=10))
    model.compile(optimizer=SGD(0.1))
    model.fit(dataset)             # batches (images, labels[, weights])

  Images are uint8 or float in [0, 255], [batch, height, width, 3], and are
  normalized on the device. Labels are classes [batch] or [batch, 1] of any
  integer type (or floats that are whole numbers), one-hot or soft labels
  [batch, classes], or `ops.losses.MixedLabels`.

  The loss is sum(weight * cross-entropy) / n over the n examples of the global
  batch whose weight is not 0; the weight is 1, or `sample_weight` times
  `class_weight`. It is what a step minimizes and what `fit` and `evaluate`
  show, over all batches of an epoch: Keras' own loss, but that an example of
  weight 0 does not count, as if it were not in the batch. top1 and top5 are
  weighted means. `evaluate` returns the plain cross-entropy, not the smoothed
  one, so that runs can be compared. A step's loss and accuracies are those at
  the weights themselves, with SAM as well. A step whose loss or gradient is not
  finite changes no weight (`train_step.NonfiniteGuard`).

  Args:
    network: maps normalized images to logits [batch, classes].
    label_smoothing: fraction of the target spread over all classes, in [0, 1).
    ema_decay: decay of the moving average of the weights, in [0, 1); None
      keeps no average.
    mean_rgb, stddev_rgb: normalization of images, in units of [0, 1].
    seed: of dropout and stochastic depth.
    sam: perturbs the weights at which the gradient is taken; None does not.
    pruning: sets weights of an `NFNet(sparse=...)` to zero; None does not.
    micro_batches: number of equal parts in which a replica computes its batch,
      one after the other, to save memory; the update is the same.
    layer_decay: learning rate of each stage of the network relative to the next
      one toward the head, in (0, 1].
    frozen: stages of the network that are not trained, such as ["stem",
      "stage1"], or "backbone" for all but the classifier.

  Raises:
    UserError: if `frozen` names a stage that the network does not have, or a
      number is out of range.
  """

  def __init__(
    self,
    network: keras.Model,
    *,
    label_smoothing: float = 0.1,
    ema_decay: float | None = 0.99999,
    mean_rgb: Sequence[float] = MEAN_RGB,
    stddev_rgb: Sequence[float] = STDDEV_RGB,
    seed: int = 0,
    sam: SAM | None = None,
    pruning: Pruning | None = None,
    micro_batches: int = 1,
    layer_decay: float = 1.0,
    frozen: Sequence[str] | str = (),
    **kwargs,
  ):
    refuse_keras3("Classifier", network)
    super().__init__(dtype="float32", **kwargs)  # the network casts
    # `train_step` returns metrics, which are reduced over replicas already;
    # Keras would sum them once more.
    self.distribute_reduction_method = "first"
    self.network = network
    self.label_smoothing, self.ema_decay = label_smoothing, ema_decay
    self.mean_rgb, self.stddev_rgb = tuple(mean_rgb), tuple(stddev_rgb)
    self.seed, self.micro_batches = seed, micro_batches
    self.sam, self.pruning = sam, pruning
    self.layer_decay = layer_decay
    stages = layers_by_stage(network)
    param_groups.freeze(stages, frozen)
    self.frozen = frozen if isinstance(frozen, str) else tuple(frozen)
    param_groups.set_layer_decay(stages, layer_decay)
    if pruning:
      pruning.sparsities_of(sparse_convolutions(network))  # or refuses
    self._scores = Scores()
    self._telemetry = self.guard = self.pruner = self._compile_options = None
    self.averages = (
      [] if ema_decay is None else ema.add_averages(self, self._averaged)
    )
    self.restart_averages()
    self.built = True

  @property
  def _averaged(self) -> list[tf.Variable]:
    # Frozen weights too: a checkpoint has the same tensors with and without.
    return [v for v in self.network.variables if v.trainable]

  def compile(self, optimizer, **kwargs):
    """Configures training; the loss and the metrics are built in.

    The averages of the weights restart as copies, unless the optimizer has
    already trained.

    Args:
      optimizer: a Keras optimizer.
      **kwargs: of `keras.Model.compile`, such as steps_per_execution.

    Raises:
      UserError: if a loss or metrics are given, the network has losses of its
        own, or the optimizer is a legacy one or would ignore learning rate
        multipliers.
    """
    refuse_other_losses(self.network, kwargs)
    refuse_keras3("Classifier.compile", optimizer)
    saved = self.optimizer if kwargs.pop("from_serialized", False) else None
    # With None Keras would warn that `sample_weight` weighs no metric.
    super().compile(optimizer=optimizer, weighted_metrics=[], **kwargs)
    if not isinstance(self.optimizer, keras.optimizers.Optimizer):
      name = type(self.optimizer).__name__
      raise UserError(
        f"Classifier.compile received {name}, a legacy Keras optimizer; use"
        f" nfnets_tf.AGC({name}(...))."
      )
    variables = self.network.trainable_variables
    param_groups.check_lr_multipliers(self.optimizer, variables)
    self._compile_options = kwargs
    with self.distribute_strategy.scope():
      self.optimizer.build(variables)
      if saved is not None:
        param_groups.restore_saved_state(self.optimizer, saved)
      stages = variables_by_stage(self.network)
      self._telemetry = Telemetry(
        variables, self.optimizer, self.sam, stages=stages
      )
      self.guard = NonfiniteGuard(self.optimizer)
    if self.pruning:
      self.pruner = PruningOptimizer(
        self.pruning,
        self.optimizer,
        sparse_convolutions(self.network),
        {id(v): a for v, a in zip(self._averaged, self.averages)},
      )
    if self._before_first_step():
      self.restart_averages()

  def restart_averages(self) -> None:
    """Sets the averages to the current weights."""
    ema.start(self.averages, self._averaged)

  def _before_first_step(self) -> bool:
    return self.optimizer is not None and not self.optimizer.iterations.numpy()

  def get_compile_config(self):
    """Returns the arguments of `compile`, for `save`; None before it."""
    if self._compile_options is None:
      return None
    return {"optimizer": _serialize(self.optimizer), **self._compile_options}

  def compile_from_config(self, config):
    """Compiles with the result of `get_compile_config`, for `load_model`."""
    self.compile(**{**config, "optimizer": _deserialize(config["optimizer"])})

  def expected_data(self) -> Expected | None:
    """Returns what images and labels have to be."""
    shape = getattr(self.network, "input_shape", None)
    if not isinstance(shape, tuple):
      return None
    unit = 255.0 * max(self.stddev_rgb)
    classes = self.network.output_shape[-1]
    return Expected(shape, classes, in_bytes=unit > 1.5)

  @property
  def metrics(self):
    """The Keras metrics of examples and, once compiled, of steps."""
    telemetry = self._telemetry.metrics if self._telemetry else []
    return [*self._scores.metrics, *telemetry]

  # A method: Keras would save what a public property holds.
  def example_metrics(self) -> list[keras.metrics.Metric]:
    """Returns the Keras metrics of examples: loss, top-1 and top-5."""
    return self._scores.metrics

  def call(self, images, training=False):
    """Returns logits [batch, classes] of images in [0, 255]."""
    if expected := self.expected_data():
      check_images(images.shape, images.dtype, expected)
    return self.network(self.normalize(images), training=training)

  def normalize(self, images: tf.Tensor) -> tf.Tensor:
    """Maps images in [0, 255] to the network's input.

    Args:
      images: uint8 or float [batch, height, width, 3].

    Returns:
      float32, same shape.
    """
    images = tf.cast(images, tf.float32)
    mean = 255.0 * tf.constant(self.mean_rgb, tf.float32)
    stddev = 255.0 * tf.constant(self.stddev_rgb, tf.float32)
    return (images - mean) / stddev

  def train_step(self, data):
    """Runs one step; called by Keras' `fit`.

    Returns:
      {name: mean since the metrics were reset, a float32 scalar}.
    """
    self.make_step(data)
    return {**self._scores.results(), **self._telemetry.results()}

  def make_step(self, data) -> None:
    """Runs one step on a replica's part of the global batch.

    Unlike `train_step` it does not read the metrics, which under several
    workers is one sum over the network for each of them.
    """
    tensors = unpack_batch(data)
    weights = tensors[2]
    variables = self.network.trainable_variables
    step = tf.identity(self.optimizer.iterations)
    batch = ReplicaBatch(
      self._compute_training_losses,
      variables,
      [tensor for tensor in tensors if tensor is not None],
      seed=stateless_random.step_seed(self.seed, step),
      replicas=self.distribute_strategy.num_replicas_in_sync,
      micro_batches=self.micro_batches,
    )
    result = batch.gradient(self.sam, step)
    passes = [p for p in (result.clean, result.perturbed) if p is not None]
    gradients, finite = self.guard.reduce_gradients(
      result.gradients,
      [p.losses for p in passes],
      variables,
      counts=None if weights is None else count_examples(weights),
    )
    clean, *perturbed = (p.masked(finite) for p in passes)
    norms = measure_gradients(gradients, variables, self.optimizer, finite)
    self._telemetry.update(
      norms,
      weights=weights,
      perturbed=perturbed[0] if perturbed else None,
      sam_active=result.sam_active,
    )
    grouped = isinstance(self.optimizer, param_groups.GroupedOptimizer)
    # The guard has summed the gradients over replicas already.
    (self.pruner or self.optimizer).apply_gradients(
      zip(gradients, variables),
      skip_gradients_aggregation=True,
      **({"norms": norms} if grouped else {}),
    )
    if self.averages:
      decay = tf.where(finite, ema.warmed_decay(step, self.ema_decay), 1.0)
      ema.update(self.averages, self._averaged, decay)
    self._scores.update(clean)

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
    """Returns the loss of a batch, for a training loop of one's own.

    Args:
      x: ignored.
      y: labels in any of the forms of the class.
      y_pred: logits, float [batch, classes].
      sample_weight: [batch] or [batch, 1]; None is 1 for each.

    Returns:
      The mean over the examples whose weight is not 0, a float32 scalar.
    """
    del x
    weights = canonical_weights(sample_weight)
    _, metrics = self._training_losses(y_pred, y, weights)
    total = tf.reduce_sum(metrics.losses * metrics.weights)
    return tf.math.divide_no_nan(total, count_examples(metrics.weights)[0])

  def _compute_training_losses(self, images, labels, weights=None):
    """Returns (losses multiplied by weights [examples], `ExampleMetrics`)."""
    return self._training_losses(self(images, training=True), labels, weights)

  def _training_losses(self, logits, labels, weights):
    labels = canonical_labels(labels, logits.shape[-1])
    losses = softmax_cross_entropy(
      logits, labels, label_smoothing=self.label_smoothing
    )
    metrics = compute_example_metrics(logits, labels, losses, weights)
    return losses * metrics.weights, metrics

  def test_step(self, data):
    """Evaluates a batch; called by Keras' `evaluate`.

    Returns:
      {name: mean since the metrics were reset, a float32 scalar}.
    """
    self.score_batch(data)
    return self._scores.results()

  def score_batch(self, data) -> None:
    """Adds a replica's part of a batch to loss and accuracies."""
    images, labels, weights = unpack_batch(data)
    logits = self(images, training=False)
    labels = canonical_labels(labels, logits.shape[-1])
    losses = softmax_cross_entropy(logits, labels)
    metrics = compute_example_metrics(logits, labels, losses, weights)
    self._scores.update(metrics)

  def named_weights(self) -> dict[str, tf.Variable]:
    """Returns {name that all file formats share: weight of the network}."""
    return named_variables(self.network)

  def named_averages(self) -> dict[str, tf.Variable]:
    """Returns {name of a weight: its average, float32 of the same shape}."""
    named = self.named_weights()
    names = {id(variable): name for name, variable in named.items()}
    return {names[id(v)]: a for v, a in zip(self._averaged, self.averages)}

  @contextlib.contextmanager
  def averaged(self) -> Iterator[None]:
    """Swaps the averaged weights into the network within a `with` block.

    Raises:
      UserError: if the classifier keeps no averages.
    """
    if not self.averages:
      raise UserError(
        "Classifier.averaged() needs averaged weights, but ema_decay is None;"
        " construct the Classifier with an ema_decay such as 0.9999."
      )
    if self._before_first_step():  # weights may have been loaded meanwhile
      self.restart_averages()
    with ema.exchanged(self.averages, self._averaged):
      yield

  def get_config(self):
    """Returns the constructor's arguments, with the network serialized."""
    return {
      "name": self.name,
      "network": _serialize(self.network),
      "label_smoothing": self.label_smoothing,
      "ema_decay": self.ema_decay,
      "mean_rgb": self.mean_rgb,
      "stddev_rgb": self.stddev_rgb,
      "seed": self.seed,
      "sam": self.sam and _serialize(self.sam),
      "pruning": self.pruning and _serialize(self.pruning),
      "micro_batches": self.micro_batches,
      "layer_decay": self.layer_decay,
      "frozen": self.frozen,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Builds a classifier from the result of `get_config`."""
    # A SavedModel names a functional network without its module.
    network = keras.layers.deserialize(config["network"], custom_objects)
    parts = {"network": network}
    for name in ("sam", "pruning"):
      if config.get(name):
        parts[name] = _deserialize(config[name], custom_objects)
    return cls(**{**config, **parts})
