"""The training and evaluation steps around a network, as a Keras model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.models import naming
from nfnets_tf.models.nfnet import layers_by_stage
from nfnets_tf.ops import stateless_random
from nfnets_tf.ops.losses import softmax_cross_entropy
from nfnets_tf.optim import ema, param_groups
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.findings import find
from nfnets_tf.train.gradients import Share
from nfnets_tf.train.guard import Guard, counted
from nfnets_tf.train.telemetry import Scores, Telemetry

# Of ImageNet, in units of [0, 1]: what the published weights expect.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)

_serialize = keras.saving.serialize_keras_object
_deserialize = keras.saving.deserialize_keras_object


@keras.saving.register_keras_serializable(package="nfnets_tf")
class Classifier(keras.Model):
  """Trains a network on images and labels; use as any Keras model.

    model = Classifier(NFNet("F0", num_classes=10))
    model.compile(optimizer=SGD(0.1))
    model.fit(dataset)             # batches (images, labels[, weights])

  Images are uint8 or float in [0, 255], [batch, height, width, 3]; they are
  normalised on the device. Labels are integers [batch] or distributions [batch,
  classes]; with weights, an example of weight 0 counts nowhere. The loss is the
  mean over the global batch. `evaluate` gives the plain cross-entropy, never
  the smoothed one, so that runs can be compared; a step's loss and accuracies
  are those at the weights themselves, with SAM as well. A step whose loss or
  gradient is not finite changes no weight (`guard.Guard`).

  Args:
    network: maps normalised images to logits.
    label_smoothing: share of the target that is spread over all classes.
    ema_decay: decay of the average of the weights; None keeps none.
    mean_rgb, stddev_rgb: what images are normalised by, in units of [0, 1].
    seed: of dropout and stochastic depth.
    sam: how the step's gradient is taken at perturbed weights; None is plain.
    micro_batches: number of equal parts in which a replica computes its batch,
      one after the other, for less memory; the update is the same.
    layer_decay: the learning rate of each part of the network is this times
      that of the next part towards the head.
    frozen: parts of the network that do not learn, such as ["stem", "stage1"],
      or "backbone", which is all but the classifier.

  Raises:
    UserError: if `frozen` names what the network has not.
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
    micro_batches: int = 1,
    layer_decay: float = 1.0,
    frozen: Sequence[str] | str = (),
    **kwargs,
  ):
    super().__init__(dtype="float32", **kwargs)  # the network casts
    # What a step returns are metrics, put together already; Keras would sum.
    self.distribute_reduction_method = "first"
    self.network = network
    self.label_smoothing = label_smoothing
    self.ema_decay = ema_decay
    self.mean_rgb = tuple(mean_rgb)
    self.stddev_rgb = tuple(stddev_rgb)
    self.seed = seed
    self.sam = sam
    self.micro_batches = micro_batches
    self.layer_decay = layer_decay
    self.frozen = frozen if isinstance(frozen, str) else tuple(frozen)
    stages = layers_by_stage(network)
    param_groups.freeze(stages, frozen)
    param_groups.set_layer_decay(stages, layer_decay)
    self._scores = Scores()
    self._telemetry = self.guard = None
    self._compile_options = None
    self.averages = (
      [] if ema_decay is None else ema.add_averages(self, self._averaged)
    )
    self.restart_averages()
    self.built = True

  @property
  def _averaged(self) -> list[tf.Variable]:
    # Frozen weights too, so that freezing changes no file.
    return [v for v in self.network.variables if v.trainable]

  def compile(self, optimizer, **kwargs):
    """Configures training; the loss and the metrics are the class's own.

    The average of the weights starts anew as a copy, unless the optimizer has
    already made steps.

    Raises:
      UserError: if a loss or metrics are given.
    """
    for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
      if kwargs.pop(name, None) is not None:
        raise UserError(
          f"Classifier.compile received {name}, but has a loss (softmax"
          " cross-entropy) and metrics of its own; leave it out, and set"
          " label_smoothing if need be."
        )
    super().compile(optimizer=optimizer, **kwargs)
    self._compile_options = kwargs
    with self.distribute_strategy.scope():
      self.optimizer.build(self.network.trainable_variables)
      self._telemetry = Telemetry(self.network, self.optimizer, self.sam)
      self.guard = Guard(self.optimizer)
    if self._before_first_step():
      self.restart_averages()

  def restart_averages(self) -> None:
    """Sets the averages to the weights as they are."""
    ema.start(self.averages, self._averaged)

  def _before_first_step(self) -> bool:
    return self.optimizer is not None and not self.optimizer.iterations.numpy()

  def get_compile_config(self):
    """Returns what `compile` was given, for `save`; None before it."""
    if self._compile_options is None:
      return None
    return {"optimizer": _serialize(self.optimizer), **self._compile_options}

  def compile_from_config(self, config):
    """Compiles as `get_compile_config` says, for `load_model`."""
    self.compile(**{**config, "optimizer": _deserialize(config["optimizer"])})

  @property
  def metrics(self):
    """Running means of the scores and of how training goes."""
    telemetry = self._telemetry.metrics if self._telemetry else []
    return [*self._scores.metrics, *telemetry]

  def call(self, images, training=False):
    """Returns the logits of images in [0, 255]."""
    return self.network(self.normalise(images), training=training)

  def normalise(self, images: tf.Tensor) -> tf.Tensor:
    """Maps uint8 or float images in [0, 255] to the network's float32 input."""
    images = tf.cast(images, tf.float32)
    mean = 255.0 * tf.constant(self.mean_rgb, tf.float32)
    stddev = 255.0 * tf.constant(self.stddev_rgb, tf.float32)
    return (images - mean) / stddev

  def train_step(self, data):
    """Makes one step on a replica's share of the global batch."""
    tensors = keras.utils.unpack_x_y_sample_weight(data)
    variables = self.network.trainable_variables
    step = tf.identity(self.optimizer.iterations)
    share = Share(
      self._evaluate_for_training,
      variables,
      [tensor for tensor in tensors if tensor is not None],
      seed=stateless_random.step_seed(self.seed, step),
      replicas=self.distribute_strategy.num_replicas_in_sync,
      micro_batches=self.micro_batches,
    )
    taken = share.taken(self.sam, step)
    gradients, finite = self.guard.summed(taken, variables)
    taken = counted(taken, finite)
    self._telemetry.update(variables, gradients, taken, tensors[2], finite)
    self.optimizer.apply_gradients(
      zip(gradients, variables), skip_gradients_aggregation=True
    )
    if self.averages:
      decay = tf.where(finite, ema.warmed_decay(step, self.ema_decay), 1.0)
      ema.update(self.averages, self._averaged, decay)
    self._scores.update(taken.clean)
    return {**self._scores.results(), **self._telemetry.results()}

  def _evaluate_for_training(self, images, labels, weights=None):
    """Maps some examples to (losses by weight, findings)."""
    logits = self(images, training=True)
    smoothing = self.label_smoothing
    losses = softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    found = find(logits, labels, losses, weights)
    return losses * found.weights, found

  def test_step(self, data):
    """Evaluates a replica's share of a batch: plain loss and accuracies."""
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    logits = self(images, training=False)
    losses = softmax_cross_entropy(logits, labels)
    self._scores.update(find(logits, labels, losses, weights))
    return self._scores.results()

  def named_averages(self) -> dict[str, tf.Variable]:
    """Returns {name of the weight: its average}."""
    named = naming.named_variables(self.network)
    names = {id(variable): name for name, variable in named.items()}
    return {names[id(v)]: a for v, a in zip(self._averaged, self.averages)}

  @contextlib.contextmanager
  def averaged(self) -> Iterator[None]:
    """Puts the averaged weights in the network for the time of a `with`."""
    if not self.averages:
      raise UserError(
        "the averaged weights were asked for, but ema_decay is None: give the"
        " Classifier an ema_decay."
      )
    if self._before_first_step():  # weights may have been loaded since
      self.restart_averages()
    with ema.exchanged(self.averages, self._averaged):
      yield

  def get_config(self):
    """Returns the constructor's arguments; the network is serialized."""
    return {
      "name": self.name,
      "network": _serialize(self.network),
      "label_smoothing": self.label_smoothing,
      "ema_decay": self.ema_decay,
      "mean_rgb": self.mean_rgb,
      "stddev_rgb": self.stddev_rgb,
      "seed": self.seed,
      "sam": self.sam and _serialize(self.sam),
      "micro_batches": self.micro_batches,
      "layer_decay": self.layer_decay,
      "frozen": self.frozen,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Builds the classifier that `get_config` described."""
    for name in ("network", "sam"):
      made = config[name] and _deserialize(config[name], custom_objects)
      config = {**config, name: made}
    return cls(**config)
