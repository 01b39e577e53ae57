"""The residual block of the NFNets.

Brock et al. 2021 (arXiv 2102.06171), section 4.1 and appendix C, with the
numerics of DeepMind's released code. Shapes are [batch, height, width,
channels].
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.layers import (
  SqueezeExcite,
  StochasticDepth,
  WSConv2D,
  register,
)
from nfnets_tf.ops.activations import scaled_activation
from nfnets_tf.ops.roles import Role, mark

ALPHA = 0.2  # scale of every residual branch


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
    self._activate = scaled_activation(activation)

  def build(self, input_shape):
    channels = input_shape[-1]
    mid, groups, dtype = self.bottleneck, self.groups, self.dtype_policy

    def conv(name, inputs, filters, size, **options):
      layer = WSConv2D(filters, size, name=name, dtype=dtype, **options)
      with tf.name_scope(name):  # HDF5 files want every name once
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
    # Named after the block: its draws differ from every other block's.
    self.stochastic_depth = StochasticDepth(
      self.stochdepth_rate, name=f"{self.name}_stochastic_depth", dtype=dtype
    )
    gain = keras.initializers.Constant(self.initial_skip_gain)
    self.skip_gain = mark(
      self.add_weight("skip_gain", (), initializer=gain), Role.VECTOR
    )
    super().build(input_shape)

  # Nothing here branches on a tensor, and converting every block is slow.
  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=False):
    out = self._activate(inputs) * self.beta
    shortcut = self._shortcut(inputs, out)
    out = self._activate(self.conv0(out))
    out = self._activate(self.conv1(out))
    out = self._activate(self.conv1b(out))
    out = self.squeeze_excite(self.conv2(out))
    out = self.stochastic_depth(out, training=training)
    out *= tf.cast(self.skip_gain, out.dtype)
    return out * ALPHA + shortcut

  def _shortcut(self, inputs, out):
    """`inputs` if the shape stays; else `out` pooled and projected."""
    if self.conv_shortcut is None:
      return inputs
    if self.strides > 1:
      # SAME average pooling divides by the pixels it really covers.
      out = tf.nn.avg_pool2d(out, 2, self.strides, "SAME")
    return self.conv_shortcut(out)

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
    }
