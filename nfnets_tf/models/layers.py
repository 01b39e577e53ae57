"""The layers of an NFNet.

Variables are float32. A layer computes in its policy's dtype; the
standardization of kernels, the pooling and the logits are float32 under every
policy. Images are [batch, height, width, channels].
"""

from __future__ import annotations

import functools

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models.dropout import StochasticDepth, register
from nfnets_tf.ops import convolution
from nfnets_tf.ops.activations import scaled_activation
from nfnets_tf.ops.weight_standardization import (
  STATISTICS,
  standardize,
  standardize_sparse,
)
from nfnets_tf.optim.param_groups import ParamGroup, set_group
from nfnets_tf.ranges import accepts, one_of, optional

ALPHA = 0.2  # scale of every residual branch
SPARSE = optional(one_of(*STATISTICS))  # of kernels that are pruned


def spatial_mean(images: tf.Tensor) -> tf.Tensor:
  """Averages over height and width, in float32.

  Args:
    images: float [batch, height, width, channels], of any precision.

  Returns:
    Means, float32 [batch, channels].
  """
  return tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2])


@register
class SpatialMean(keras.layers.Layer):
  """Global average pooling, in float32 under every policy."""

  def call(self, inputs):
    return spatial_mean(inputs)


@register
@accepts(sparse=SPARSE)
class WSConv2D(keras.layers.Layer):
  """Convolution with scaled weight standardization and SAME padding.

  Brock et al. 2021, equation 1; input [batch, height, width, channels].

  Args:
    filters: output channels.
    kernel_size: height and width of the kernel.
    strides: of both axes.
    groups: number of groups of channels; divides input channels and `filters`.
    sparse: None standardizes over all entries of the kernel. For a kernel that
      `Pruning` makes sparse, entries that are zero stay zero, and "live"
      standardizes over the others alone, "all" over all of them.
  """

  def __init__(
    self,
    filters: int,
    kernel_size: int,
    *,
    strides: int = 1,
    groups: int = 1,
    sparse: str | None = None,
    **kwargs,
  ):
    super().__init__(**kwargs)
    self.filters = filters
    self.kernel_size = kernel_size
    self.strides = strides
    self.groups = groups
    self.sparse = sparse

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

  def call(self, inputs, training=False):
    kernel = self.standardized(inputs.dtype, training=training)
    outputs = convolution.conv2d(
      inputs, kernel, strides=self.strides, groups=self.groups
    )
    return tf.nn.bias_add(outputs, tf.cast(self.bias, outputs.dtype))

  def standardized(self, dtype: tf.DType, training: bool = False) -> tf.Tensor:
    """Returns the standardized kernel.

    Args:
      dtype: of the result; float64 computes in it, too.
      training: whether a gradient will be taken.

    Returns:
      [height, width, in_channels / groups, filters].
    """
    kernel, gain = self.kernel, self.gain
    if dtype == tf.float64:
      kernel, gain = tf.cast(kernel, dtype), tf.cast(gain, dtype)
    if self.sparse is None:
      return standardize(kernel, gain, dtype, training=training)
    return standardize_sparse(
      kernel, gain, dtype, statistics=self.sparse, training=training
    )

  def get_config(self):
    return {
      **super().get_config(),
      "filters": self.filters,
      "kernel_size": self.kernel_size,
      "strides": self.strides,
      "groups": self.groups,
      "sparse": self.sparse,
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
    scaled_activation(activation)  # refuses an unknown name

  def call(self, inputs, training=False):
    return scaled_activation(self.activation, training=training)(inputs)

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
    return inputs * self.scale(inputs)

  def scale(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the factors of the channels, [batch, 1, 1, channels]."""
    pooled = spatial_mean(inputs)
    scale = tf.sigmoid(self.expand(tf.nn.relu(self.reduce(pooled))))
    return 2.0 * scale[:, None, None, :]

  def get_config(self):
    return {**super().get_config(), "ratio": self.ratio}


@register
class NFBlock(keras.layers.Layer):
  """A residual block: 1x1, grouped 3x3 twice, 1x1, squeeze-excite, skip gain.

  out = act(x) * beta;  y = shortcut + alpha * skip_gain * branch(out), where
  the shortcut is x itself or, if the shape changes, a projection of `out`.

  Args:
    filters: output channels.
    bottleneck: channels between the two 1x1 convolutions.
    groups: number of groups of the 3x3 convolutions.
    beta: 1 / expected standard deviation of the input.
    strides: of the first 3x3 convolution and of the shortcut.
    stochdepth_rate: probability of dropping an example's branch in training.
    skip_gain: initial value of the branch's learned gain.
    activation: name of the nonlinearity.
    recompute: whether the backward pass computes the block again instead of
      keeping its activations.
    sparse: see `WSConv2D`, of all convolutions.
  """

  def __init__(
    self,
    filters: int,
    *,
    bottleneck: int,
    groups: int,
    beta: float,
    strides: int = 1,
    stochdepth_rate: float = 0.0,
    skip_gain: float = 0.0,
    activation: str = "gelu",
    recompute: bool = False,
    sparse: str | None = None,
    **kwargs,
  ):
    super().__init__(**kwargs)
    self.filters = filters
    self.bottleneck = bottleneck
    self.groups = groups
    self.beta = beta
    self.strides = strides
    self.stochdepth_rate = stochdepth_rate
    self.initial_skip_gain = skip_gain
    self.activation = activation
    self.recompute = recompute
    self.sparse = sparse
    scaled_activation(activation)  # refuses an unknown name

  def build(self, input_shape):
    channels = input_shape[-1]
    mid, groups, dtype = self.bottleneck, self.groups, self.dtype_policy

    def conv(name, inputs, filters, size, **options):
      options |= {"name": name, "dtype": dtype, "sparse": self.sparse}
      layer = WSConv2D(filters, size, **options)
      with tf.name_scope(name):  # every name once, or HDF5 files fail to save
        layer.build([None, None, None, inputs])
      return layer

    projected = self.strides > 1 or channels != self.filters
    self.conv_shortcut = (
      conv("conv_shortcut", channels, self.filters, 1) if projected else None
    )
    self.conv0 = conv("conv0", channels, mid, 1)
    self.conv1 = conv("conv1", mid, mid, 3, strides=self.strides, groups=groups)
    self.conv1b = conv("conv1b", mid, mid, 3, groups=groups)
    self.conv2 = conv("conv2", mid, self.filters, 1)
    self.squeeze_excite = SqueezeExcite(name="squeeze_excite", dtype=dtype)
    with tf.name_scope("squeeze_excite"):
      self.squeeze_excite.build([None, None, None, self.filters])
    # Named after the block, so that every block draws its own numbers.
    self.stochastic_depth = StochasticDepth(
      self.stochdepth_rate, name=f"{self.name}_stochastic_depth", dtype=dtype
    )
    gain = keras.initializers.Constant(self.initial_skip_gain)
    self.skip_gain = set_group(
      self.add_weight("skip_gain", (), initializer=gain), ParamGroup.VECTOR
    )
    super().build(input_shape)

  # Nothing here branches on a tensor, and converting every block is slow.
  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=False):
    # Drawn once, not again where the branch is recomputed.
    keep = self.stochastic_depth.draw(inputs) if training else None
    arguments = (inputs,) if keep is None else (inputs, keep)
    apply = functools.partial(self._apply, training)
    if training and self.recompute:
      apply = tf.recompute_grad(apply)
    return apply(*arguments)

  def _apply(self, training, inputs, keep=None):
    form = functools.partial(
      scaled_activation, self.activation, training=training
    )
    activate = form()
    out = form(scale=self.beta)(inputs)
    shortcut = self._shortcut(inputs, out, training)
    for conv in (self.conv0, self.conv1, self.conv1b):
      out = activate(conv(out, training=training))
    out = self.conv2(out, training=training)
    # One pass over the images: all factors are the same for every pixel.
    scale = self.squeeze_excite.scale(out)
    if keep is not None:
      scale *= keep
    scale *= ALPHA * tf.cast(self.skip_gain, scale.dtype)
    return out * scale + shortcut

  def _shortcut(self, inputs, out, training):
    """Returns `inputs`, or `out` pooled and projected if the shape changes."""
    if self.conv_shortcut is None:
      return inputs
    if self.strides > 1:
      # SAME average pooling divides by the pixels it really covers.
      out = tf.nn.avg_pool2d(out, 2, self.strides, "SAME")
    return self.conv_shortcut(out, training=training)

  def get_config(self):
    return {
      **super().get_config(),
      "filters": self.filters,
      "bottleneck": self.bottleneck,
      "groups": self.groups,
      "beta": self.beta,
      "strides": self.strides,
      "stochdepth_rate": self.stochdepth_rate,
      "skip_gain": self.initial_skip_gain,
      "activation": self.activation,
      "recompute": self.recompute,
      "sparse": self.sparse,
    }


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
