"""NFNet: residual networks without normalization, trained by AGC.

Brock et al. 2021 (arXiv 2102.06171), section 4.1 and appendix C, with the
numerics of DeepMind's released code: stem, four stages of residual blocks, and
a head. Shapes are [batch, height, width, channels].
"""

from __future__ import annotations

from tensorflow import keras

from nfnets_tf.models import variants
from nfnets_tf.models.block import ALPHA, NFBlock
from nfnets_tf.models.layers import (
  ClassifierHead,
  Dropout,
  ScaledActivation,
  SpatialMean,
  WSConv2D,
  register,
)
from nfnets_tf.ops.variance import input_scales

STAGE_STRIDES = (1, 2, 2, 2)


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
    skip_gain: what every residual branch is first multiplied by. DeepMind's 0
      starts the blocks as identities, and AGC lets a gain of 0 move by no more
      than its floor: short runs leave it there, and want 1.
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
    skip_gain: float = 0.0,
    bottleneck_rule: str = "released",
    input_shape: tuple[int | None, ...] = (None, None, 3),
    name: str = "nfnet",
    **kwargs,
  ):
    size = variants.variant(variant)
    rate = size.drop_rate if drop_rate is None else drop_rate
    images = keras.Input(input_shape)
    branch = {
      "activation": activation,
      "stochdepth_rate": stochdepth_rate,
      "skip_gain": skip_gain,
    }
    outputs = _features(images, size, bottleneck_rule, **branch)
    if include_top:
      outputs = Dropout(rate, name="dropout")(outputs)
      outputs = ClassifierHead(num_classes, name="classifier")(outputs)
    super().__init__(images, outputs, name=name, **kwargs)
    self._config = {
      **branch,
      "variant": variant,
      "num_classes": num_classes,
      "include_top": include_top,
      "drop_rate": drop_rate,
      "bottleneck_rule": bottleneck_rule,
      "input_shape": tuple(input_shape),
      "name": name,
    }

  def get_config(self):
    return dict(self._config)

  @classmethod
  def from_config(cls, config, custom_objects=None):
    return cls(**config)


def _features(images, size: variants.Variant, rule: str, **branch):
  """Returns the pooled features of `images`."""
  activation = branch["activation"]
  outputs = _stem(images, size, activation)
  for block in _blocks(size, rule, **branch):
    outputs = block(outputs)
  outputs = WSConv2D(2 * size.widths[-1], 1, name="final_conv")(outputs)
  outputs = ScaledActivation(activation, name="final_activation")(outputs)
  return SpatialMean(name="pool")(outputs)


def _stem(images, size: variants.Variant, activation: str):
  """Four convolutions with no activation after the last."""
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
  size: variants.Variant, rule: str, *, stochdepth_rate: float, **options
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
        name=f"nf_block_{index}" if index else "nf_block",
        **options,
      )
      index += 1
