"""NFNet: residual networks without normalization, trained with AGC.

Brock et al. 2021 (arXiv 2102.06171), section 4.1 and appendix C, with the
numerics of DeepMind's released code: a stem, four stages of residual blocks,
and a head. Shapes are [batch, height, width, channels].
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.errors import UserError, refuse_keras3
from nfnets_tf.keras_api import keras
from nfnets_tf.models import variants
from nfnets_tf.models.dropout import Dropout, register
from nfnets_tf.models.layers import (
  ALPHA,
  SPARSE,
  ClassifierHead,
  NFBlock,
  ScaledActivation,
  SpatialMean,
  WSConv2D,
)
from nfnets_tf.models.pretrained import Published
from nfnets_tf.models.weights import load_weights
from nfnets_tf.ops.weight_standardization import input_scales
from nfnets_tf.optim.param_groups import HEAD
from nfnets_tf.ranges import (
  PATH,
  RATE,
  accepts,
  each,
  either,
  flag,
  integer,
  number,
  one_of,
  optional,
)

STAGES = ("stage1", "stage2", "stage3", "stage4")  # of residual blocks
STAGE_STRIDES = (1, 2, 2, 2)


@register
@accepts(
  num_classes=integer(1),
  include_top=flag(),
  drop_rate=optional(RATE),
  stochdepth_rate=RATE,
  skip_gain=number(),
  bottleneck_rule=variants.BOTTLENECK_RULE,
  input_shape=each(optional(integer(1)), 3),
  recompute=either(flag(), each(one_of(*STAGES))),
  sparse=SPARSE,
  weights=optional(PATH),
)
class NFNet(keras.Model):
  """An NFNet image classifier.

  Called on normalized float images [batch, height, width, 3] it returns float32
  logits [batch, num_classes], or the pooled float32 features [batch, 2 *
  widths[-1]] without the top.

  Args:
    variant: "F0" to "F7", "F0+" to "F7+", or a small one: "nano", "femto"; see
      `variants.VARIANTS`.
    num_classes: number of classes; ignored without the top.
    include_top: whether to end in dropout and the classifier.
    activation: nonlinearity, one of `ops.activations.GAMMAS`.
    drop_rate: dropout before the classifier; None is the variant's own.
    stochdepth_rate: rate that the last block nearly reaches; block i of n has
      rate * i / n.
    skip_gain: initial gain of every residual branch. DeepMind's 0 starts the
      blocks as identities; AGC then limits its updates to clipping *
      clipping_eps, so that short runs never leave the identity and need 1.
    bottleneck_rule: where half the width is not a multiple of the group width,
      as in stage 1 of the "+" variants, "released" rounds it down (128 of 192,
      DeepMind's code) and "published" keeps it as one group (the 527 M
      parameters that the NFNet paper's table 5 gives for F4+).
    input_shape: [height, width, channels]; None leaves a size free.
    recompute: whether the backward pass of training computes the residual
      blocks again instead of keeping their activations (activation
      checkpointing, remat): less memory, a third more arithmetic, the same
      weights. A list of stages, such as ["stage1", "stage2"], does it for their
      blocks only.
    sparse: for a network that `Pruning` makes sparse, the statistics of its
      standardization: "live", over the entries of a filter that are left, or
      "all", over zeros as well; None for a dense network. All convolutions
      but the stem's are concerned.
    weights: initial weights, as `weights.load_weights` reads them: "imagenet",
      a path or a URL; None is random. The classifier is among them if it has
      `num_classes` classes; otherwise it is new, and a warning says so.

  Raises:
    UserError: if the variant, the activation or the rule does not exist, a
      number is out of range, or the weights do not fit.
  """

  # Counted one by one, its layers give the same as together: each follows the
  # one before it, and none begins with a convolution of what that one has
  # convolved (`models.cost`).
  counted_by_layer = True

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
    recompute: bool | Sequence[str] = False,
    sparse: str | None = None,
    weights: str | None = None,
    name: str = "nfnet",
    **kwargs,
  ):
    size = variants.variant(variant)
    path = _locate(weights, variant, **kwargs)  # may fail: before building
    images = keras.Input(input_shape)
    branch = {"activation": activation, "recompute": _stages(recompute)}
    branch |= {"stochdepth_rate": stochdepth_rate, "sparse": sparse}
    branch |= {"skip_gain": skip_gain}
    outputs = _features(images, size, bottleneck_rule, **branch)
    if include_top:
      outputs = _classify(outputs, num_classes, size, drop_rate)
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
    if path is not None:
      load_weights(self, path, keep_head=None)

  @property
  def variant(self) -> str:
    """Name of the size."""
    return self._config["variant"]

  def __call__(self, *args, **kwargs):
    """Applies the network; see the class."""
    refuse_keras3("NFNet", *args)
    return super().__call__(*args, **kwargs)

  def get_config(self):
    return dict(self._config)

  @classmethod
  def from_config(cls, config, custom_objects=None):
    return cls(**config)


def _locate(weights: str | None, variant: str, **kwargs) -> str | None:
  """Returns the path of a new network's weights, downloaded if need be."""
  if "classes" in kwargs:
    raise UserError(
      "NFNet received classes, expected num_classes; write num_classes ="
      f" {kwargs['classes']!r}."
    )
  if weights is None:
    return None
  # Under `cost.abstractly` variables have no values, as in a graph.
  if tf.is_symbolic_tensor(tf.Variable(0.0).handle):
    raise UserError(
      f"NFNet received weights={weights!r} where a network is only described;"
      " in a gin file bind WEIGHTS, not nfnet.NFNet.weights."
    )
  return Published().locate(os.fspath(weights), variant)


def _stages(recompute: bool | Sequence[str]) -> tuple[str, ...]:
  """Returns the stages whose blocks are recomputed."""
  if isinstance(recompute, bool):
    return STAGES if recompute else ()
  return tuple(stage for stage in STAGES if stage in recompute)


def _features(
  images,
  size: variants.Variant,
  rule: str,
  *,
  activation: str,
  sparse: str | None,
  **blocks,
):
  """Returns the pooled features of `images`."""
  outputs = _stem(images, size, activation)
  blocks |= {"activation": activation, "sparse": sparse}
  for block in _blocks(size, rule, **blocks):
    outputs = block(outputs)
  width = 2 * size.widths[-1]
  outputs = WSConv2D(width, 1, name="final_conv", sparse=sparse)(outputs)
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
  size: variants.Variant,
  rule: str,
  *,
  stochdepth_rate: float,
  recompute: Sequence[str],
  **options,
):
  """Yields the residual blocks of all stages in order."""
  scales = input_scales(size.depths, alpha=ALPHA)
  index = 0
  for stage, depth, width, strides in zip(
    STAGES, size.depths, size.widths, STAGE_STRIDES
  ):
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
        recompute=stage in recompute,
        name=f"nf_block_{index}" if index else "nf_block",
        **options,
      )
      index += 1


def _classify(
  features, num_classes: int, size: variants.Variant, drop_rate: float | None
):
  """Returns the logits of features."""
  rate = size.drop_rate if drop_rate is None else drop_rate
  kept = Dropout(rate, name="dropout")(features)
  return ClassifierHead(num_classes, name=HEAD)(kept)


def check_image_size(network: keras.Model, image_size: int) -> None:
  """Checks that the last stage of an `NFNet` sees more than one pixel.

  Args:
    network: of another class, it is not checked.
    image_size: height and width of its images, in pixels.

  Raises:
    UserError: if the images are too small.
  """
  if not isinstance(network, NFNet):
    return
  name = network.get_config()["variant"]
  strides = variants.variant(name).stem_strides + STAGE_STRIDES[:-1]
  pixels = math.prod(strides)
  if image_size <= pixels:
    raise UserError(
      f"images of {image_size} pixels are too small for NFNet {name}, whose"
      " last stage would see a single pixel; bind IMAGE_SIZE, or image_size of"
      f" the transforms, to {pixels + 1} or more, or VARIANT to a network for"
      " small images, such as 'pico'."
    )


def layers_by_stage(
  network: keras.Model,
) -> dict[str, list[keras.layers.Layer]]:
  """Returns the layers with weights of an `NFNet`, {} of another network.

  The stages are stem, stage1 to stage4, final_conv and, with the top,
  classifier, in the order of the data.
  """
  if not isinstance(network, NFNet):
    return {}
  config = network.get_config()
  blocks = [layer for layer in network.layers if isinstance(layer, NFBlock)]
  stages = {"stem": [network.get_layer(f"stem_conv{i}") for i in range(4)]}
  depths = variants.variant(config["variant"]).depths
  for stage, depth in zip(STAGES, depths):
    stages[stage], blocks = blocks[:depth], blocks[depth:]
  stages["final_conv"] = [network.get_layer("final_conv")]
  if config["include_top"]:
    stages[HEAD] = [network.get_layer(HEAD)]
  return stages


def variables_by_stage(network: keras.Model) -> dict[str, list[tf.Variable]]:
  """Returns {stage: its variables}; see `layers_by_stage`."""
  return {
    name: [variable for layer in layers for variable in layer.variables]
    for name, layers in layers_by_stage(network).items()
  }
