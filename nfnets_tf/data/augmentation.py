"""Augmentation of training images: MixUp, CutMix, random erasing.

A mixer is a callable (first, second, seed) -> (image, weight): uint8 images of
one shape [height, width, 3], the seed int64 [2]; `weight`, float32 [] in
[0, 1], is the weight of the first image's label, 1 - weight that of the
second's. Transforms are those of `preprocessing`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from nfnets_tf.ops.stateless_random import fold_seed
from nfnets_tf.ranges import (
  accepts,
  ascending,
  each,
  integer,
  number,
  transform,
)

if TYPE_CHECKING:
  from nfnets_tf.data.preprocessing import Transform

Mixer = Callable[
  [tf.Tensor, tf.Tensor, tf.Tensor], "tuple[tf.Tensor, tf.Tensor]"
]

_ATTEMPTS = 10


def paste(
  image: tf.Tensor, box: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
  """Replaces a box [h, w, 3] of an image [height, width, 3], from top left.

  Slices and two `concat`s: a scatter or a `where` over a mask is slower.
  """
  bottom, right = top + tf.shape(box)[0], left + tf.shape(box)[1]
  rows = image[top:bottom]
  rows = tf.concat([rows[:, :left], box, rows[:, right:]], axis=1)
  return tf.concat([image[:top], rows, image[bottom:]], axis=0)


@accepts(
  batch_mixers=each(transform("@augmentation.MixUp()")),
  post_mix_transforms=each(transform("@randaugment.RandAugment()")),
  final_transforms=each(transform("@augmentation.RandomErasing()")),
  multiplicity=integer(1),
)
@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Augmentation of training images after a split's own transforms.

  Args:
    batch_mixers: combine pairs of images. Image i of a stream uses mixer
      i modulo their number: `MixUp` and `CutMix` are DeepMind's pair, each for
      half of a batch. Batches keep their size, so a step reads twice as many
      images. Empty: no mixing.
    post_mix_transforms: applied after mixing, or without any.
    final_transforms: applied after those. Separate, because a gin overlay can
      replace a list but not append to it.
    multiplicity: number of times an image enters its batch, each time with
      other random draws: repeated augmentation (Fort et al. 2021, arXiv
      2105.13343). Batches keep their size, so they hold fewer distinct images;
      copies share a replica.

  Raises:
    UserError: if the multiplicity is not a positive integer.
  """

  batch_mixers: Sequence[Mixer] = ()
  post_mix_transforms: Sequence[Transform] = ()
  final_transforms: Sequence[Transform] = ()
  multiplicity: int = 1

  @property
  def records_per_image(self) -> int:
    """Number of records per image: 1, or 2 with mixing."""
    return 2 if self.batch_mixers else 1

  @property
  def transforms(self) -> tuple[Transform, ...]:
    """All transforms after mixing, in order."""
    return (*self.post_mix_transforms, *self.final_transforms)


@accepts(alpha=number(above=0))
class MixUp:
  """Blends two images (Zhang et al. 2017, arXiv 1710.09412).

  Args:
    alpha: the weight is drawn from Beta(alpha, alpha); 0.2 in the NFNet paper.

  Raises:
    UserError: if alpha is not positive.
  """

  def __init__(self, *, alpha: float = 0.2):
    self.alpha = alpha

  def __call__(self, first, second, seed):
    gammas = tf.random.stateless_gamma([2], seed, alpha=self.alpha)
    # With a small alpha both gammas may underflow to 0.
    weight = tf.math.divide_no_nan(gammas[0], gammas[0] + gammas[1])
    first, second = (tf.cast(x, tf.float32) for x in (first, second))
    mixed = tf.round(second + weight * (first - second))
    return tf.cast(mixed, tf.uint8), weight


class CutMix:
  """Pastes a box of the first image into the second (Yun et al. 2019).

  arXiv 1905.04899. The box has a fraction of the image's area that is uniform
  in [0, 1) and a uniform center. It is clipped at the border; the weight is
  the fraction of the pixels that remain.
  """

  def __call__(self, first, second, seed):
    numbers = tf.random.stateless_uniform([3], seed, alg="philox")
    size = tf.shape(first)[:2]
    extent = tf.cast(size, tf.float32)
    center = tf.cast(numbers[:2] * extent, tf.int32)
    half = tf.cast(tf.sqrt(numbers[2]) * extent, tf.int32) // 2
    begin = tf.maximum(center - half, 0)
    end = tf.minimum(center + half, size)
    box = first[begin[0] : end[0], begin[1] : end[1]]
    mixed = paste(second, box, begin[0], begin[1])
    pixels = tf.cast(tf.reduce_prod(end - begin), tf.float32)
    weight = pixels / tf.reduce_prod(extent)
    return tf.ensure_shape(mixed, first.shape), weight


@accepts(
  probability=number(0, 1),
  area=ascending(number(above=0, most=1)),
  aspect_ratio=ascending(number(above=0)),
)
class RandomErasing:
  """Replaces a random box by noise (Zhong et al. 2017, arXiv 1708.04896).

  Samples ten boxes of random area and aspect ratio and erases the first one
  that is smaller than the image; if there is none, the image is unchanged.

  Args:
    probability: fraction of the images that lose a box.
    area: smallest and largest fraction of the image's area.
    aspect_ratio: smallest and largest height over width, log-uniform.

  Raises:
    UserError: if a number is out of range.
  """

  def __init__(
    self,
    *,
    probability: float,
    area: Sequence[float] = (0.02, 1 / 3),
    aspect_ratio: Sequence[float] = (0.3, 1 / 0.3),
  ):
    self.probability = probability
    self.area = tuple(area)
    self.aspect_ratio = tuple(aspect_ratio)

  def __call__(self, image, seed):
    chosen = tf.random.stateless_uniform([], fold_seed(seed, 0), alg="philox")
    return tf.cond(
      chosen < self.probability,
      lambda: self._erase(image, fold_seed(seed, 1), fold_seed(seed, 2)),
      lambda: image,
    )

  def _erase(self, image, box_seed, noise_seed):
    top, left, height, width = self._sample_box(tf.shape(image), box_seed)
    noise = tf.random.stateless_uniform(
      [height, width, 3], noise_seed, 0, 256, tf.int32, alg="philox"
    )
    erased = paste(image, tf.cast(noise, tf.uint8), top, left)
    return tf.ensure_shape(erased, image.shape)

  def _sample_box(self, image_shape, seed):
    """Returns (top, left, height, width); empty if no attempt fits."""
    numbers = tf.random.stateless_uniform([4, _ATTEMPTS], seed, alg="philox")
    size = tf.cast(image_shape[:2], tf.float32)
    pixels = tf.reduce_prod(size) * _interpolate(self.area, numbers[0])
    log_ratios = tf.math.log(tf.constant(self.aspect_ratio, tf.float32))
    ratio = tf.exp(_interpolate(tf.unstack(log_ratios), numbers[1]))
    heights = tf.cast(tf.round(tf.sqrt(pixels * ratio)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(pixels / ratio)), tf.int32)
    fits = (heights < image_shape[0]) & (widths < image_shape[1])
    first = tf.argmax(fits)
    height = tf.where(fits[first], heights[first], 0)
    width = tf.where(fits[first], widths[first], 0)
    room = tf.cast(image_shape[:2] - [height, width] + 1, tf.float32)
    top = tf.cast(numbers[2, first] * room[0], tf.int32)
    left = tf.cast(numbers[3, first] * room[1], tf.int32)
    return top, left, height, width


def _interpolate(ends, number):
  return ends[0] + (ends[1] - ends[0]) * number
