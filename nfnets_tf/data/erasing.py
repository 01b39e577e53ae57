"""Random erasing (Zhong et al. 2017, arXiv 1708.04896)."""

from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.data.preprocess import decode
from nfnets_tf.errors import UserError

_ATTEMPTS = 10


class RandomErasing:
  """Replaces a random box of some images by noise.

  Of ten boxes of random area and shape the first that is smaller than the image
  is taken; if none is, the image stays as it is.

  Args:
    probability: share of the images that lose a box.
    area: smallest and largest share of the image's area.
    aspect_ratio: smallest and largest height over width; its logarithm is drawn
      evenly.

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
    if not 0 <= probability <= 1:
      raise UserError(
        f"RandomErasing.probability = {probability!r} cannot be used; bind it"
        " to a number from 0 to 1."
      )
    if not 0 < area[0] <= area[1] <= 1 or not (
      0 < aspect_ratio[0] <= aspect_ratio[1]
    ):
      raise UserError(
        f"RandomErasing cannot use area = {area} and aspect_ratio ="
        f" {aspect_ratio}; bind them to (smallest, largest), above 0, and the"
        " area at most 1."
      )
    self.probability = probability
    self.area = tuple(area)
    self.aspect_ratio = tuple(aspect_ratio)

  def __call__(self, image, seed):
    image = decode(image)
    fold = tf.random.experimental.stateless_fold_in
    chosen = tf.random.stateless_uniform([], fold(seed, 0), alg="philox")
    return tf.cond(
      chosen < self.probability,
      lambda: self._erase(image, fold(seed, 1), fold(seed, 2)),
      lambda: image,
    )

  def _erase(self, image, box_seed, noise_seed):
    top, left, height, width = self._box(tf.shape(image), box_seed)
    noise = tf.random.stateless_uniform(
      [height, width, 3], noise_seed, 0, 256, tf.int32, alg="philox"
    )
    rows = image[top : top + height]
    right = rows[:, left + width :]
    noise = tf.cast(noise, tf.uint8)
    rows = tf.concat([rows[:, :left], noise, right], axis=1)
    erased = tf.concat([image[:top], rows, image[top + height :]], axis=0)
    return tf.ensure_shape(erased, image.shape)

  def _box(self, shape, seed):
    """Returns (top, left, height, width); empty if no attempt fits."""
    numbers = tf.random.stateless_uniform([4, _ATTEMPTS], seed, alg="philox")
    size = tf.cast(shape[:2], tf.float32)
    pixels = tf.reduce_prod(size) * _between(self.area, numbers[0])
    logarithms = tf.math.log(tf.constant(self.aspect_ratio))
    ratio = tf.exp(_between(tf.unstack(logarithms), numbers[1]))
    heights = tf.cast(tf.round(tf.sqrt(pixels * ratio)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(pixels / ratio)), tf.int32)
    fits = (heights < shape[0]) & (widths < shape[1])
    first = tf.argmax(fits)
    height = tf.where(fits[first], heights[first], 0)
    width = tf.where(fits[first], widths[first], 0)
    room = tf.cast(shape[:2] - [height, width] + 1, tf.float32)
    top = tf.cast(numbers[2, first] * room[0], tf.int32)
    left = tf.cast(numbers[3, first] * room[1], tf.int32)
    return top, left, height, width


def _between(ends, number):
  return ends[0] + (ends[1] - ends[0]) * number
