"""The training and evaluation steps around a network, as a Keras model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.ops import draws
from nfnets_tf.ops.errors import UserError
from nfnets_tf.ops.losses import softmax_cross_entropy
from nfnets_tf.optim import ema

# Of ImageNet, in units of [0, 1]: what the published weights expect.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)


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
  the smoothed one, so that runs can be compared.

  Args:
    network: maps normalised images to logits.
    label_smoothing: share of the target that is spread over all classes.
    ema_decay: decay of the average of the weights; None keeps none.
    mean_rgb: subtracted from images, in units of [0, 1].
    stddev_rgb: divides images, in units of [0, 1].
    seed: of dropout and stochastic depth.
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
    **kwargs,
  ):
    # Images are normalised in float32 under every policy; the network casts.
    super().__init__(dtype="float32", **kwargs)
    self.network = network
    self.label_smoothing = label_smoothing
    self.ema_decay = ema_decay
    self.mean_rgb = tuple(mean_rgb)
    self.stddev_rgb = tuple(stddev_rgb)
    self.seed = seed
    self._loss = keras.metrics.Mean(name="loss")
    self._top1 = keras.metrics.Mean(name="top1")
    self._top5 = keras.metrics.Mean(name="top5")
    self._compile_options = None
    self.averages = [] if ema_decay is None else self._make_averages()
    self.built = True

  def _make_averages(self):
    return [
      self.add_weight(
        f"average_{index}",
        variable.shape,
        dtype=tf.float32,
        initializer="zeros",
        trainable=False,
        experimental_autocast=False,
      )
      for index, variable in enumerate(self.network.trainable_variables)
    ]

  def compile(self, optimizer, **kwargs):
    """Configures training; the loss and the metrics are the class's own.

    The average of the weights starts here as a copy, unless the optimizer has
    already made steps.

    Raises:
      UserError: if a loss or metrics are given.
    """
    for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
      if kwargs.pop(name, None) is not None:
        raise UserError(
          f"Classifier.compile received {name}, but it computes its own loss"
          " (softmax cross-entropy), top-1 and top-5; leave it out, and set"
          " label_smoothing if need be."
        )
    super().compile(optimizer=optimizer, **kwargs)
    self._compile_options = kwargs
    with self.distribute_strategy.scope():
      self.optimizer.build(self.network.trainable_variables)
    if self.averages and not self.optimizer.iterations.numpy():
      ema.start(self.averages, self.network.trainable_variables)

  def get_compile_config(self):
    """Returns what `compile` was given, for `save`; None before it."""
    if self._compile_options is None:
      return None
    optimizer = keras.saving.serialize_keras_object(self.optimizer)
    return {"optimizer": optimizer, **self._compile_options}

  def compile_from_config(self, config):
    """Compiles as `get_compile_config` says, for `load_model`."""
    optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
    self.compile(**{**config, "optimizer": optimizer})

  @property
  def metrics(self):
    """Running means of the loss and the accuracies."""
    return [self._loss, self._top1, self._top5]

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
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    variables = self.network.trainable_variables
    with tf.GradientTape() as tape, draws.using(self._step_seed()):
      logits = self(images, training=True)
      losses = softmax_cross_entropy(
        logits, labels, label_smoothing=self.label_smoothing
      )
      if weights is not None:
        losses *= tf.cast(weights, losses.dtype)
      replicas = self.distribute_strategy.num_replicas_in_sync
      # Summed over replicas, this is the mean over the global batch.
      loss = tf.reduce_mean(losses) / replicas
    step = tf.identity(self.optimizer.iterations)
    self.optimizer.minimize(loss, variables, tape=tape)
    if self.averages:
      decay = ema.warmed_decay(step, self.ema_decay)
      ema.update(self.averages, variables, decay)
    self._update_metrics(losses, logits, labels, weights)
    return self.get_metrics_result()

  def test_step(self, data):
    """Evaluates a replica's share of a batch: plain loss and accuracies."""
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    logits = self(images, training=False)
    losses = softmax_cross_entropy(logits, labels)
    self._update_metrics(losses, logits, labels, weights)
    return self.get_metrics_result()

  @contextlib.contextmanager
  def averaged(self) -> Iterator[None]:
    """Puts the averaged weights in the network for the time of a `with`."""
    if not self.averages:
      raise UserError(
        "the averaged weights were asked for, but ema_decay is None: give the"
        " Classifier an ema_decay."
      )
    with ema.exchanged(self.averages, self.network.trainable_variables):
      yield

  def _step_seed(self):
    """A seed that differs between steps and between replicas."""
    step = tf.cast(self.optimizer.iterations, tf.int32)
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.random.experimental.stateless_fold_in(
      tf.stack([self.seed, step]), tf.cast(replica, tf.int32)
    )

  def _update_metrics(self, losses, logits, labels, weights):
    if labels.shape.rank == 2:
      labels = tf.argmax(labels, axis=-1)
    self._loss.update_state(losses, weights)
    for metric, k in ((self._top1, 1), (self._top5, 5)):
      hits = tf.math.in_top_k(labels, logits, k)
      metric.update_state(tf.cast(hits, tf.float32), weights)

  def get_config(self):
    """Returns the constructor's arguments; the network is serialized."""
    return {
      "name": self.name,
      "network": keras.saving.serialize_keras_object(self.network),
      "label_smoothing": self.label_smoothing,
      "ema_decay": self.ema_decay,
      "mean_rgb": self.mean_rgb,
      "stddev_rgb": self.stddev_rgb,
      "seed": self.seed,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Builds the classifier that `get_config` described."""
    network = keras.saving.deserialize_keras_object(
      config["network"], custom_objects=custom_objects
    )
    return cls(**{**config, "network": network})
