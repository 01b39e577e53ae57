"""Two images made one: MixUp and CutMix, as DeepMind's pipeline has them.

A mixer is a callable (first, second, seed) -> (image, share): uint8 images of
one shape [height, width, 3], the seed int64 [2]; `share`, float32 in [0, 1], is
the weight of the first image's label, 1 - share that of the second's.
"""

from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.errors import UserError

Mixer = Callable[
  [tf.Tensor, tf.Tensor, tf.Tensor], "tuple[tf.Tensor, tf.Tensor]"
]


class MixUp:
  """Blends two images (Zhang et al. 2017, arXiv 1710.09412).

  Args:
    alpha: the share is drawn from Beta(alpha, alpha); the NFNet paper has 0.2.

  Raises:
    UserError: if alpha is not positive.
  """

  def __init__(self, *, alpha: float = 0.2):
    if not alpha > 0:
      raise UserError(
        f"MixUp.alpha = {alpha!r} cannot be used; bind it to a number above 0."
      )
    self.alpha = alpha

  def __call__(self, first, second, seed):
    gammas = tf.random.stateless_gamma([2], seed, alpha=self.alpha)
    share = tf.math.divide_no_nan(gammas[0], gammas[0] + gammas[1])
    first, second = (tf.cast(x, tf.float32) for x in (first, second))
    mixed = tf.round(second + share * (first - second))
    return tf.cast(mixed, tf.uint8), share


class CutMix:
  """Puts a box of the first image on the second (Yun et al. 2019, 1905.04899).

  The box covers a part of the image that is drawn evenly from [0, 1), about a
  point drawn evenly; what reaches beyond the border is lost, and the share is
  that of the pixels that remain.
  """

  def __call__(self, first, second, seed):
    numbers = tf.random.stateless_uniform([3], seed, alg="philox")
    size = tf.shape(first)[:2]
    extent = tf.cast(size, tf.float32)
    centre = tf.cast(numbers[:2] * extent, tf.int32)
    half = tf.cast(tf.sqrt(numbers[2]) * extent, tf.int32) // 2
    begin = tf.maximum(centre - half, 0)
    end = tf.minimum(centre + half, size)
    box = first[begin[0] : end[0], begin[1] : end[1]]
    rows = second[begin[0] : end[0]]
    rows = tf.concat([rows[:, : begin[1]], box, rows[:, end[1] :]], axis=1)
    mixed = tf.concat([second[: begin[0]], rows, second[end[0] :]], axis=0)
    pixels = tf.cast(tf.reduce_prod(end - begin), tf.float32)
    share = pixels / tf.reduce_prod(extent)
    return tf.ensure_shape(mixed, first.shape), share
