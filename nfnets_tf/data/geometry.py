"""The geometric operations of RandAugment, on uint8 [height, width, 3].

Each takes for every pixel of the result the nearest one of the image, and
`FILL` outside of it: the values of `tfa.image`, which DeepMind's pipeline uses.
"""

from __future__ import annotations

import math

import tensorflow as tf

FILL = 128


def rotate(image: tf.Tensor, degrees: float | tf.Tensor) -> tf.Tensor:
  """Turns about the centre, counter-clockwise for positive angles."""
  angle = tf.convert_to_tensor(degrees, tf.float32) * (math.pi / 180)
  height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32) - 1)
  cos, sin = tf.cos(angle), tf.sin(angle)
  x = (width - (cos * width - sin * height)) / 2
  y = (height - (sin * width + cos * height)) / 2
  return _transform(image, [cos, -sin, x, sin, cos, y])


def shear_x(image: tf.Tensor, level: float | tf.Tensor) -> tf.Tensor:
  """Takes row y from `level` * y further to the right."""
  return _transform(image, [1.0, level, 0.0, 0.0, 1.0, 0.0])


def shear_y(image: tf.Tensor, level: float | tf.Tensor) -> tf.Tensor:
  """Takes column x from `level` * x further below."""
  return _transform(image, [1.0, 0.0, 0.0, level, 1.0, 0.0])


def translate_x(image: tf.Tensor, pixels: float | tf.Tensor) -> tf.Tensor:
  """Takes every pixel from `pixels` further to the right; integers are fast."""
  if _is_whole(pixels):
    return _shift(image, pixels, axis=1)
  return _transform(image, [1.0, 0.0, pixels, 0.0, 1.0, 0.0])


def translate_y(image: tf.Tensor, pixels: float | tf.Tensor) -> tf.Tensor:
  """Takes every pixel from `pixels` further below; integers are fast."""
  if _is_whole(pixels):
    return _shift(image, pixels, axis=0)
  return _transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels])


def cut_out(
  image: tf.Tensor, row: tf.Tensor, column: tf.Tensor, half: int
) -> tf.Tensor:
  """Fills a square of side 2 * `half` about (row, column)."""
  height, width = tf.unstack(tf.shape(image)[:2])
  top, bottom = tf.maximum(row - half, 0), tf.minimum(row + half, height)
  left, right = tf.maximum(column - half, 0), tf.minimum(column + half, width)
  middle = image[top:bottom]
  fill = tf.fill([bottom - top, right - left, 3], tf.constant(FILL, tf.uint8))
  middle = tf.concat([middle[:, :left], fill, middle[:, right:]], axis=1)
  return tf.concat([image[:top], middle, image[bottom:]], axis=0)


def _is_whole(pixels) -> bool:
  return tf.convert_to_tensor(pixels).dtype.is_integer


def _shift(image, pixels, axis):
  size = tf.shape(image)[axis]
  pixels = tf.clip_by_value(pixels, -size, size)
  begin, padding = [0] * 3, [[0, 0]] * 3
  begin[axis] = tf.maximum(pixels, 0)
  padding[axis] = [tf.maximum(-pixels, 0), tf.maximum(pixels, 0)]
  padded = tf.pad(image, padding, constant_values=FILL)
  return tf.slice(padded, begin, tf.shape(image))


def _transform(image, matrix):
  """Takes pixel (x, y) of the result from matrix · (x, y, 1).

  Positions are computed by whole rows and columns, and one look-up takes all:
  twice as fast as TensorFlow's own projective transform, of equal values.
  """
  size = tf.shape(image)
  height, width = tf.unstack(tf.cast(size[:2], tf.float32))
  x, y = tf.range(width)[tf.newaxis], tf.range(height)[:, tf.newaxis]
  a, b, c, d, e, f = matrix
  column = _nearest(_sum((a, x), (b, y), (c, 1.0)), width)
  row = _nearest(_sum((d, x), (e, y), (f, 1.0)), height)
  # A border of one pixel is what lies outside.
  framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=FILL)
  position = (row + 1) * (size[1] + 2) + (column + 1)
  pixels = tf.reshape(framed, [-1, 3])
  return tf.gather_nd(pixels, position[..., tf.newaxis])


def _sum(*products):
  """Adds products; a factor that is known to be 0 widens no row or column."""
  first, *others = [
    factor * values
    for factor, values in products
    if tf.is_tensor(factor) or factor
  ]
  for other in others:
    first = first + other
  return first


def _nearest(values, size):
  """Rounds halves away from 0, as the reference does; outside is -1 or size."""
  rounded = tf.sign(values) * tf.floor(tf.abs(values) + 0.5)
  return tf.cast(tf.clip_by_value(rounded, -1.0, size), tf.int32)
