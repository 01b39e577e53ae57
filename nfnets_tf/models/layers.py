"""The layers of an NFNet.

Variables are float32. A layer computes in its policy's dtype; the
standardization of kernels, the pooling and the logits are float32 under every
policy. Images are [batch, height, width, channels].
"""

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops import convolution, stateless_random
from nfnets_tf.ops.activations import scaled_activation
from nfnets_tf.ops.weight_standardization import standardize
from nfnets_tf.optim.param_groups import ParamGroup, set_group

register = keras.saving.register_keras_serializable(package="nfnets_tf")


def spatial_mean(images: tf.Tensor) -> tf.Tensor:
  """Averages over height and width, in float32.

  Args:
    images: float [batch, height, width, channels], of any precision.

  Returns:
    Means, float32 [batch, channels].
  """
  return tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2])


def _examples(inputs: tf.Tensor):
  """Returns the number of examples, static where it is known: TPUs need it."""
  return inputs.shape[0] or tf.shape(inputs)[0]


@register
class SpatialMean(keras.layers.Layer):
  """Global average pooling, in float32 under every policy."""

  def call(self, inputs):
    return spatial_mean(inputs)


@register
class WSConv2D(keras.layers.Layer):
  """Convolution with scaled weight standardization and SAME padding.

  Brock et al. 2021, equation 1; input [batch, height, width, channels].

  Args:
    filters: output channels.
    kernel_size: height and width of the kernel.
    strides: of both axes.
    groups: number of groups of channels; divides input channels and `filters`.
  """

  def __init__(
    self,
    filters: int,
    kernel_size: int,
    *,
    strides: int = 1,
    groups: int = 1,
    **kwargs,
  ):
    super().__init__(**kwargs)
    self.filters = filters
    self.kernel_size = kernel_size
    self.strides = strides
    self.groups = groups

  def build(self, input_shape):
    shape = (
      self.kernel_size,
      self.kernel_size,
      input_shape[-1] // self.groups,
      self.filters,
    )
    # Keras' autocast would round the float32 weights to bfloat16 before they
    # are standardized.
    options = {"experimental_autocast": False}
    initializer = keras.initializers.VarianceScaling(
      1.0, "fan_in", "untruncated_normal"
    )
    self.kernel = set_group(
      self.add_weight("kernel", shape, initializer=initializer, **options),
      ParamGroup.KERNEL,
    )
    self.gain = set_group(
      self.add_weight("gain", shape[-1:], initializer="ones", **options),
      ParamGroup.VECTOR,
    )
    self.bias = set_group(
      self.add_weight("bias", shape[-1:], initializer="zeros"),
      ParamGroup.VECTOR,
    )
    super().build(input_shape)

  def call(self, inputs):
    kernel = tf.cast(standardize(self.kernel, self.gain), inputs.dtype)
    outputs = convolution.conv2d(
      inputs, kernel, strides=self.strides, groups=self.groups
    )
    return tf.nn.bias_add(outputs, tf.cast(self.bias, outputs.dtype))

  def get_config(self):
    return {
      **super().get_config(),
      "filters": self.filters,
      "kernel_size": self.kernel_size,
      "strides": self.strides,
      "groups": self.groups,
    }


@register
class ScaledActivation(keras.layers.Layer):
  """A nonlinearity times its gamma; see `ops.activations`.

  Args:
    activation: name of the nonlinearity.
  """

  def __init__(self, activation: str = "gelu", **kwargs):
    super().__init__(**kwargs)
    self.activation = activation
    self._function = scaled_activation(activation)

  def call(self, inputs):
    return self._function(inputs)

  def get_config(self):
    return {**super().get_config(), "activation": self.activation}


@register
class SqueezeExcite(keras.layers.Layer):
  """Channel attention: x * 2 * sigmoid(FC(relu(FC(mean(x))))).

  The released code has an unscaled ReLU where the NFNet paper's formula has
  GELU; the published weights were trained with the ReLU.

  Args:
    ratio: width of the hidden layer as a fraction of the channels.
  """

  def __init__(self, ratio: float = 0.5, **kwargs):
    super().__init__(**kwargs)
    self.ratio = ratio

  def build(self, input_shape):
    channels = input_shape[-1]
    hidden = int(channels * self.ratio)
    self.reduce = self._dense("reduce", channels, hidden)
    self.expand = self._dense("expand", hidden, channels)
    super().build(input_shape)

  def _dense(self, name, fan_in, units):
    # Haiku's default: unlike Keras' LeCun initializer it is not rescaled for
    # the truncation.
    initializer = keras.initializers.TruncatedNormal(stddev=fan_in**-0.5)
    layer = keras.layers.Dense(
      units,
      name=name,
      kernel_initializer=initializer,
      dtype=self.dtype_policy,
    )
    with tf.name_scope(name):  # every name once, or HDF5 files fail to save
      layer.build([None, fan_in])
    set_group(layer.kernel, ParamGroup.KERNEL)
    set_group(layer.bias, ParamGroup.VECTOR)
    return layer

  def call(self, inputs):
    pooled = spatial_mean(inputs)
    scale = tf.sigmoid(self.expand(tf.nn.relu(self.reduce(pooled))))
    return inputs * (2.0 * scale[:, None, None, :])

  def get_config(self):
    return {**super().get_config(), "ratio": self.ratio}


@register
class StochasticDepth(keras.layers.Layer):
  """Zeroes whole examples at random in training, without rescaling the rest.

  DeepMind's form: examples that are kept are not divided by their probability.

  Args:
    rate: probability that an example's residual branch is dropped.
  """

  def __init__(self, rate: float = 0.0, **kwargs):
    super().__init__(**kwargs)
    self.rate = rate

  def call(self, inputs, training=False):
    if not training or not self.rate:
      return inputs
    numbers = stateless_random.uniform(self.name, [_examples(inputs), 1, 1, 1])
    return inputs * tf.cast(numbers >= self.rate, inputs.dtype)

  def get_config(self):
    return {**super().get_config(), "rate": self.rate}


@register
class Dropout(keras.layers.Layer):
  """Dropout whose mask follows from the step's seed (`ops.stateless_random`).

  All axes of its input but the batch axis have a static size.

  Args:
    rate: probability that an entry is dropped; the rest is scaled up.
  """

  def __init__(self, rate: float = 0.0, **kwargs):
    super().__init__(**kwargs)
    self.rate = rate

  def call(self, inputs, training=False):
    if not training or not self.rate:
      return inputs
    numbers = stateless_random.uniform(
      self.name, [_examples(inputs), *inputs.shape[1:]]
    )
    keep = tf.cast(numbers >= self.rate, inputs.dtype)
    return inputs * keep / (1.0 - self.rate)

  def get_config(self):
    return {**super().get_config(), "rate": self.rate}


@register
class ClassifierHead(keras.layers.Dense):
  """The last layer: logits in float32, from weights N(0, 0.01).

  Only its kernel is exempt from adaptive gradient clipping.

  Args:
    units: number of classes.
  """

  def __init__(self, units: int, **kwargs):
    kwargs.setdefault(
      "kernel_initializer", keras.initializers.RandomNormal(stddev=0.01)
    )
    super().__init__(units, **kwargs)

  def build(self, input_shape):
    super().build(input_shape)
    set_group(self.kernel, ParamGroup.HEAD_KERNEL)
    set_group(self.bias, ParamGroup.VECTOR)

  def call(self, inputs):
    return tf.cast(super().call(inputs), tf.float32)
