"""The basic per-image transforms, and their composition.

A transform is a callable (image, seed) -> image on uint8 [height, width, 3];
the seed, int64 [2], belongs to this example and this transform. Transforms run
eagerly and inside tf.data alike. The last one of a split has to fix the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data.decoding import (
  decode,
  decode_and_crop_jpeg,
  decode_lossless,
)
from nfnets_tf.ops.stateless_random import fold_seed
from nfnets_tf.ranges import MAX_SIDE, accepts, ascending, integer, number, side

Transform = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def compose(transforms: Sequence[Transform]) -> Transform:
  """Chains transforms, each with its own seed.

  Encoded strings are decoded before the first transform, unless it has a true
  attribute `accepts_encoded`. Without any transform the image is unchanged.

  Args:
    transforms: applied in order.

  Returns:
    A transform of an encoded string [] or uint8 [height, width, 3].
  """

  def apply(image, seed):
    for index, transform in enumerate(transforms):
      if not getattr(transform, "accepts_encoded", False):
        image = decode(image)
      image = transform(image, fold_seed(seed, index))
    return image

  return apply


def resize_bicubic(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
  """Resizes uint8 [h, w, 3] to uint8 [height, width, 3].

  Bicubic without antialiasing, as in DeepMind's code. Bicubic weights
  overshoot, so values are rounded and clipped to [0, 255].
  """
  image = tf.image.resize(image, [height, width], method="bicubic")
  # `tf.saturate_cast` gives the same values in twice the time.
  image = tf.minimum(tf.maximum(tf.round(image), 0.0), 255.0)
  return tf.cast(image, tf.uint8)


@accepts(image_size=side(), area=ascending(number(above=0, most=1)))
class InceptionCrop:
  """Crops a random box and resizes it to a square.

  The box has 8 to 100 % of the image's area and an aspect ratio of 3/4 to 4/3,
  sampled in ten attempts (Brock et al. 2021, appendix A.1); if none fits, the
  center is cropped. Of a JPEG string only the box is decoded.

  Args:
    image_size: side of the result in pixels.
    area: smallest and largest fraction of the image's area.
  """

  accepts_encoded = True

  def __init__(self, *, image_size: int, area: Sequence[float] = (0.08, 1.0)):
    self.image_size = image_size
    self.area = tuple(area)

  def __call__(self, image, seed):
    if image.dtype == tf.string:
      image = tf.cond(
        tf.io.is_jpeg(image),
        lambda: decode_and_crop_jpeg(
          image, lambda shape: self.sample_box(shape, seed)
        ),
        lambda: self._crop(decode_lossless(image), seed),
      )
    else:
      image = self._crop(image, seed)
    return resize_bicubic(image, self.image_size, self.image_size)

  def sample_box(self, image_shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Samples the box that is cropped.

    Args:
      image_shape: height, width and channels of the image, int32 [3].
      seed: int64 [2].

    Returns:
      (top, left, height, width) in pixels, int32 [4].
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      image_shape,
      bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
      seed=seed,
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=self.area,
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    box = tf.concat([begin[:2], size[:2]], axis=0)
    # TensorFlow returns the whole image when every attempt has failed.
    failed = tf.reduce_all(tf.equal(box[2:], image_shape[:2]))
    return tf.where(failed, self._center_box(image_shape), box)

  def _crop(self, image, seed):
    box = self.sample_box(tf.shape(image), seed)
    top, left, height, width = tf.unstack(box)
    return image[top : top + height, left : left + width]

  def _center_box(self, image_shape):
    ratio = self.image_size / (self.image_size + 32)
    shortest = tf.cast(tf.reduce_min(image_shape[:2]), tf.float32)
    side = tf.maximum(tf.cast(ratio * shortest, tf.int32), 1)
    top = (image_shape[0] - side + 1) // 2
    left = (image_shape[1] - side + 1) // 2
    return tf.stack([top, left, side, side])


class Flip:
  """Mirrors the image left to right with probability 1/2."""

  def __call__(self, image, seed):
    return tf.image.stateless_random_flip_left_right(image, seed)


@accepts(pixels=integer(0, MAX_SIDE))
class Shift:
  """Translates the image by up to `pixels` along each axis, over black.

  For images such as digits, which a flip would change into something else.

  Args:
    pixels: largest translation.
  """

  def __init__(self, *, pixels: int):
    self.pixels = pixels

  def __call__(self, image, seed):
    margin = [self.pixels, self.pixels]
    padded = tf.pad(image, [margin, margin, [0, 0]])
    return tf.image.stateless_random_crop(padded, tf.shape(image), seed)


@accepts(image_size=side())
class Resize:
  """Resizes to a square and ignores the aspect ratio.

  Args:
    image_size: side of the result in pixels.
  """

  def __init__(self, *, image_size: int):
    self.image_size = image_size

  def __call__(self, image, seed):
    del seed
    return resize_bicubic(image, self.image_size, self.image_size)


@accepts(image_size=side(), margin=integer(0, MAX_SIDE))
class SquashCenterCrop:
  """DeepMind's evaluation: resizes to a larger square and crops its center.

  Args:
    image_size: side of the result in pixels.
    margin: by how many pixels the square is larger.
  """

  def __init__(self, *, image_size: int, margin: int = 32):
    self.image_size = image_size
    self.margin = margin

  def __call__(self, image, seed):
    del seed
    side = self.image_size + self.margin
    begin, end = self.margin // 2, self.margin // 2 + self.image_size
    return resize_bicubic(image, side, side)[begin:end, begin:end]
