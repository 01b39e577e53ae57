"""NFNet: residual networks without normalization, trained by AGC.

Brock et al. 2021 (arXiv 2102.06171), section 4.1 and appendix C, with the
numerics of DeepMind's released code: stem, four stages of residual blocks, and
a head. Shapes are [batch, height, width, channels].
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models import variants
from nfnets_tf.models.layers import (
  ClassifierHead,
  Dropout,
  ScaledActivation,
  SpatialMean,
  SqueezeExcite,
  StochasticDepth,
  WSConv2D,
  register,
)
from nfnets_tf.ops.activations import scaled_activation
from nfnets_tf.ops.roles import Role, mark
from nfnets_tf.ops.variance import input_scales

ALPHA = 0.2  # scale of every residual branch
STAGE_STRIDES = (1, 2, 2, 2)


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
    self.skip_gain = mark(
      self.add_weight("skip_gain", (), initializer="zeros"), Role.VECTOR
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
      "activation": self.activation,
    }


@register
class NFNet(keras.Model):
  """An NFNet image classifier.

  Called on normalised images it returns float32 logits [batch, num_classes],
  or the pooled float32 features [batch, 2 * widths[-1]] if there is no top.

  Args:
    variant: "F0" to "F7", "F0+" to "F7+", or a small one: "nano", "femto".
    num_classes: number of classes; unused without the top.
    include_top: whether to end in dropout and the classifier.
    activation: nonlinearity, one of `ops.activations.GAMMAS`.
    drop_rate: dropout before the classifier; None is the variant's own.
    stochdepth_rate: rate that the last block nearly reaches; block i of n has
      rate * i / n.
    bottleneck_rule: what to do where half the width is no multiple of the group
      width, as in stage 1 of the "+" variants: "released" rounds it down (128
      of 192, DeepMind's code), "published" keeps it as one group (the 527 M
      parameters that the NFNet paper's table 5 gives for F4+).
    input_shape: [height, width, channels]; None leaves a size free.

  Raises:
    UserError: if the variant, the activation or the rule does not exist.
  """

  def __init__(
    self,
    variant: str,
    num_classes: int = 1000,
    *,
    include_top: bool = True,
    activation: str = "gelu",
    drop_rate: float | None = None,
    stochdepth_rate: float = 0.0,
    bottleneck_rule: str = "released",
    input_shape: tuple[int | None, ...] = (None, None, 3),
    name: str = "nfnet",
    **kwargs,
  ):
    size = variants.variant(variant)
    rate = size.drop_rate if drop_rate is None else drop_rate
    images = keras.Input(input_shape)
    outputs = _stem(images, size, activation)
    for block in _blocks(size, activation, stochdepth_rate, bottleneck_rule):
      outputs = block(outputs)
    outputs = WSConv2D(2 * size.widths[-1], 1, name="final_conv")(outputs)
    outputs = ScaledActivation(activation, name="final_activation")(outputs)
    outputs = SpatialMean(name="pool")(outputs)
    if include_top:
      outputs = Dropout(rate, name="dropout")(outputs)
      outputs = ClassifierHead(num_classes, name="classifier")(outputs)
    super().__init__(images, outputs, name=name, **kwargs)
    self._config = {
      "variant": variant,
      "num_classes": num_classes,
      "include_top": include_top,
      "activation": activation,
      "drop_rate": drop_rate,
      "stochdepth_rate": stochdepth_rate,
      "bottleneck_rule": bottleneck_rule,
      "input_shape": tuple(input_shape),
      "name": name,
    }

  def get_config(self):
    return dict(self._config)

  @classmethod
  def from_config(cls, config, custom_objects=None):
    return cls(**config)


def _stem(images, size: variants.Variant, activation: str):
  """Four convolutions, stride 4 in all, with no activation after the last."""
  widths = (*size.stem_widths, size.widths[0] // 2)
  outputs = images
  for index, (width, strides) in enumerate(zip(widths, size.stem_strides)):
    if index:
      activate = ScaledActivation(activation, name=f"stem_act{index - 1}")
      outputs = activate(outputs)
    conv = WSConv2D(width, 3, strides=strides, name=f"stem_conv{index}")
    outputs = conv(outputs)
  return outputs


def _blocks(
  size: variants.Variant, activation: str, stochdepth_rate: float, rule: str
):
  """Yields the residual blocks of all stages in order."""
  scales = input_scales(size.depths, alpha=ALPHA)
  index = 0
  for depth, width, strides in zip(size.depths, size.widths, STAGE_STRIDES):
    bottleneck, groups = variants.bottleneck_shape(
      width, size.group_width, rule
    )
    for first in [True] + [False] * (depth - 1):
      yield NFBlock(
        width,
        bottleneck=bottleneck,
        groups=groups,
        beta=scales[index],
        strides=strides if first else 1,
        stochdepth_rate=stochdepth_rate * index / len(scales),
        activation=activation,
        name=f"nf_block_{index}" if index else "nf_block",
      )
      index += 1
