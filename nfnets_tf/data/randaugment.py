"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as DeepMind applies it.

To add an operation, write a function of uint8 [height, width, 3] and register
it: `_register` maps the magnitude and random draws to its other arguments.

Operations reproduce the AutoAugment code of DeepMind's and the Model Garden's
pipelines within one gray level, quirks included: products are truncated, and
`contrast` blends with a gray of height * width / 256. Geometric ones equal
`tfa.image` bit for bit. Arithmetic on whole rows is five to ten times as fast
as the original's lookup tables and `tf.where`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.data.augmentation import paste
from nfnets_tf.errors import require
from nfnets_tf.ranges import accepts, integer, number

FILL = 128  # gray outside of the image
_LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))

# The released code's list. Its order matters: operations are drawn by position.
DEEPMIND_OPERATIONS = tuple(
  "auto_contrast equalize invert rotate posterize solarize color contrast"
  " brightness sharpness shear_x shear_y translate_x translate_y cut_out"
  " solarize_add".split()
)


class Strength(NamedTuple):
  """Strength of all operations of a `RandAugment`."""

  fraction: float  # magnitude / 10
  translation: float  # in pixels, at magnitude 10
  cut_out: float  # half the side in pixels, at magnitude 10

  @property
  def blend(self) -> float:
    """Factor of the operations that blend the image with another."""
    return 1.8 * self.fraction + 0.1

  @property
  def pixels(self) -> float | int:
    """Pixels of a translation; a faster integer if it is whole."""
    pixels = self.fraction * self.translation
    return int(pixels) if float(pixels).is_integer() else pixels


# {name: function of (image, strength, draws)}, filled by `_register`.
OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {}


def _register(arguments: Callable = lambda strength, draws: ()):
  """Registers an operation of `RandAugment` under its function's name.

  Args:
    arguments: maps a `Strength` and the draws, float32 [2] in [0, 1), to the
      function's arguments after the image.
  """

  def decorate(function):
    # AutoGraph would warn that it cannot read the lambdas' source; operations
    # have no control flow for it to convert.
    @tf.autograph.experimental.do_not_convert
    def apply(image, strength, draws):
      return function(image, *arguments(strength, draws))

    OPERATIONS[function.__name__] = apply
    return function

  return decorate


def _signed(value, draws):
  return tf.where(draws[0] < 0.5, -value, value)


@accepts(
  layers=integer(0, 100),
  magnitude=number(0, 20),
  translation=number(0),
  cut_out=number(0),
)
class RandAugment:
  """Applies `layers` operations, each drawn uniformly from `operations`.

  All have the same magnitude; the sign of a movement and the place of a
  cut-out are random. Takes and returns uint8 [height, width, 3].

  Args:
    layers: number of operations applied to an image.
    magnitude: strength of all operations, from 0 to 20; the pixels below are
      those at magnitude 10, and the NFNet paper uses up to 15.
    operations: names of `OPERATIONS`.
    translation: pixels of a translation at magnitude 10.
    cut_out: half the side of a cut-out, in pixels, at magnitude 10.

  Raises:
    UserError: if an argument is invalid.
  """

  def __init__(
    self,
    *,
    layers: int,
    magnitude: float,
    operations: Sequence[str] = DEEPMIND_OPERATIONS,
    translation: float = 100.0,
    cut_out: float = 40.0,
  ):
    valid = operations and set(operations) <= OPERATIONS.keys()
    names = f"some of {', '.join(OPERATIONS)}"
    require(valid, "RandAugment.operations", operations, names)
    self.layers = layers
    self.magnitude = magnitude
    self.operations = tuple(operations)
    self.strength = Strength(magnitude / 10, translation, cut_out)

  def __call__(self, image, seed):
    for choice, draws in self.draw(seed):
      image = self.apply(image, choice, draws)
    return image

  def draw(self, seed: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Draws each layer's operation and its sign or place.

    Args:
      seed: int64 [2].

    Returns:
      For each layer a position in `operations`, int32 [], and float32 [2] in
      [0, 1).
    """
    if not self.layers:
      return []
    numbers = tf.random.stateless_uniform([self.layers, 3], seed, alg="philox")
    count = len(self.operations)
    choices = tf.cast(numbers[:, 0] * count, tf.int32)
    choices = tf.minimum(choices, count - 1)  # the product may round up
    return list(zip(tf.unstack(choices), tf.unstack(numbers[:, 1:])))

  def apply(
    self, image: tf.Tensor, choice: tf.Tensor, draws: tf.Tensor
  ) -> tf.Tensor:
    """Applies one operation to uint8 [height, width, 3]; see `draw`."""
    branches = [
      lambda name=name: OPERATIONS[name](image, self.strength, draws)
      for name in self.operations
    ]
    return tf.ensure_shape(tf.switch_case(choice, branches), image.shape)


@_register()
def identity(image: tf.Tensor) -> tf.Tensor:
  """Returns uint8 [height, width, 3] unchanged."""
  return tf.identity(image)  # a branch must not return its captured input


@_register()
def auto_contrast(image: tf.Tensor) -> tf.Tensor:
  """Stretches each channel, unless flat, of uint8 [height, width, 3]."""
  low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float32)
  high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float32)
  flat = tf.equal(high, low)
  scale = tf.where(flat, 1.0, 255.0 / tf.where(flat, 1.0, high - low))
  offset = tf.where(flat, 0.0, -low * scale)
  rows = tf.cast(_as_rows(image), tf.float32)
  rows = rows * _tile_channels(scale, image) + _tile_channels(offset, image)
  # Within [0, 255] up to rounding, which the cast truncates.
  return tf.reshape(tf.cast(rows, tf.uint8), tf.shape(image))


@_register()
def equalize(image: tf.Tensor) -> tf.Tensor:
  """Equalizes each channel, unless flat, of uint8 [height, width, 3]."""
  rows = tf.cast(_as_rows(image), tf.int32)
  # One histogram for all channels: their values are 256 apart.
  index = rows + _tile_channels(tf.constant([0, 256, 512]), image)
  histogram = tf.histogram_fixed_width(index, [0, 767], 768)
  histogram = tf.reshape(histogram, [3, 256])
  sums = tf.cumsum(histogram, axis=1)
  used = tf.cast(histogram > 0, tf.int32)
  largest = tf.argmax(used * tf.range(256), axis=1)
  last = tf.gather(histogram, largest[:, tf.newaxis], axis=1, batch_dims=1)
  step = (sums[:, -1:] - last) // 255
  before = tf.pad(sums[:, :-1] + step // 2, [[0, 0], [1, 0]])
  spread = tf.clip_by_value(before // tf.maximum(step, 1), 0, 255)
  table = tf.where(step > 0, spread, tf.range(256)[tf.newaxis])
  table = tf.reshape(tf.cast(table, tf.uint8), [-1])
  # For scalars twice as fast as `tf.gather`.
  values = tf.gather_nd(table, index[..., tf.newaxis])
  return tf.reshape(values, tf.shape(image))


@_register()
def invert(image: tf.Tensor) -> tf.Tensor:
  """Replaces every value x of uint8 [height, width, 3] by 255 - x."""
  return tf.bitwise.invert(image)


@_register(lambda strength, draws: (_signed(30.0 * strength.fraction, draws),))
def rotate(image: tf.Tensor, degrees: float | tf.Tensor) -> tf.Tensor:
  """Rotates uint8 [height, width, 3] counter-clockwise about its center."""
  angle = tf.convert_to_tensor(degrees, tf.float32) * (math.pi / 180)
  height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32) - 1)
  cos, sin = tf.cos(angle), tf.sin(angle)
  x = (width - (cos * width - sin * height)) / 2
  y = (height - (sin * width + cos * height)) / 2
  return _warp(image, [cos, -sin, x, sin, cos, y])


@_register(lambda strength, draws: (int(strength.fraction * 4),))
def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
  """Keeps the `bits` highest bits, 1 to 8, of uint8 [height, width, 3].

  0 keeps one bit: TensorFlow shifts a byte by at most seven.
  """
  mask = 256 - (1 << (8 - max(bits, 1)))
  return tf.bitwise.bitwise_and(image, tf.constant(mask, tf.uint8))


@_register(lambda strength, draws: (int(strength.fraction * 256),))
def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
  """Inverts the values >= `threshold` of uint8 [height, width, 3]."""
  if threshold > 255:
    return image
  inverted = tf.cast(image >= threshold, tf.uint8) * 255
  return tf.bitwise.bitwise_xor(image, inverted)


@_register(lambda strength, draws: (int(strength.fraction * 110),))
def solarize_add(
  image: tf.Tensor, addition: int, threshold: int = 128
) -> tf.Tensor:
  """Adds `addition` to the values < `threshold` of uint8 [height, width, 3].

  The addition is from 0 to 255; sums saturate at 255.
  """
  below = tf.cast(image < threshold, tf.uint8)
  if threshold + addition <= 256:
    return image + below * addition
  added = tf.minimum(image, 255 - addition) + addition
  return image + (added - image) * below


@_register(lambda strength, draws: (strength.blend,))
def color(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends uint8 [height, width, 3] with its gray version: 0 gives gray."""
  # TensorFlow's conversion scales gray levels by 255.5 / 255, then truncates.
  mix = tf.constant([[w * 255.5 / 255] * 3 for w in _LUMA])
  values = tf.cast(tf.reshape(image, [-1, 3]), tf.float32)
  gray = tf.floor(tf.matmul(values, mix))
  blended = _to_uint8(gray + factor * (values - gray))
  return tf.reshape(blended, tf.shape(image))


@_register(lambda strength, draws: (strength.blend,))
def contrast(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends uint8 [height, width, 3] with a flat gray: 0 gives the gray."""
  pixels = tf.cast(tf.reduce_prod(tf.shape(image)[:2]), tf.float32)
  gray = tf.floor(tf.minimum(pixels / 256.0, 255.0))
  values = tf.cast(image, tf.float32)
  return _to_uint8(gray + factor * (values - gray))


@_register(lambda strength, draws: (strength.blend,))
def brightness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends uint8 [height, width, 3] with black: 0 gives black."""
  return _to_uint8(factor * tf.cast(image, tf.float32))


@_register(lambda strength, draws: (strength.blend,))
def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends uint8 [height, width, 3] with its smoothed version.

  0 gives the smoothed image. The border of one pixel is unchanged.
  """
  values = tf.cast(image, tf.float32)
  kernel = tf.constant(_SMOOTH, tf.float32, [3, 3, 1, 1]) / 13.0
  smooth = tf.nn.depthwise_conv2d(
    values[tf.newaxis], tf.tile(kernel, [1, 1, 3, 1]), [1] * 4, "VALID"
  )
  change = (1.0 - factor) * (tf.floor(smooth[0]) - values[1:-1, 1:-1])
  return _to_uint8(values + tf.pad(change, [[1, 1], [1, 1], [0, 0]]))


@_register(lambda strength, draws: (_signed(0.3 * strength.fraction, draws),))
def shear_x(image: tf.Tensor, level: float | tf.Tensor) -> tf.Tensor:
  """Takes row y of uint8 [height, width, 3] from `level` * y further right."""
  return _warp(image, [1.0, level, 0.0, 0.0, 1.0, 0.0])


@_register(lambda strength, draws: (_signed(0.3 * strength.fraction, draws),))
def shear_y(image: tf.Tensor, level: float | tf.Tensor) -> tf.Tensor:
  """Takes column x of uint8 [height, width, 3] from `level` * x below."""
  return _warp(image, [1.0, 0.0, 0.0, level, 1.0, 0.0])


@_register(lambda strength, draws: (_signed(strength.pixels, draws),))
def translate_x(image: tf.Tensor, pixels: float | tf.Tensor) -> tf.Tensor:
  """Moves uint8 [height, width, 3] to the left; integers are faster."""
  return _translate(image, pixels, axis=1)


@_register(lambda strength, draws: (_signed(strength.pixels, draws),))
def translate_y(image: tf.Tensor, pixels: float | tf.Tensor) -> tf.Tensor:
  """Moves uint8 [height, width, 3] upwards; integers are faster."""
  return _translate(image, pixels, axis=0)


@_register(
  lambda strength, draws: (draws, int(strength.fraction * strength.cut_out))
)
def cut_out(image: tf.Tensor, center: tf.Tensor, half: int) -> tf.Tensor:
  """Fills a square of side 2 * `half` in uint8 [height, width, 3].

  Its center is a fraction of height and width, float32 [2] in [0, 1).
  """
  shape = tf.shape(image)[:2]
  place = tf.cast(center * tf.cast(shape, tf.float32), tf.int32)
  top, left = tf.unstack(tf.maximum(place - half, 0))
  bottom, right = tf.unstack(tf.minimum(place + half, shape))
  fill = tf.fill([bottom - top, right - left, 3], tf.constant(FILL, tf.uint8))
  return paste(image, fill, top, left)


def _as_rows(image: tf.Tensor) -> tf.Tensor:
  """Reshapes to [height, width * 3], where broadcasting rows is fast."""
  shape = tf.shape(image)
  return tf.reshape(image, [shape[0], shape[1] * shape[2]])


def _tile_channels(channels: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Repeats a number per channel, [3], to a row of `_as_rows`."""
  return tf.tile(channels, tf.shape(image)[1:2])


def _to_uint8(values: tf.Tensor) -> tf.Tensor:
  # `tf.clip_by_value` gives the same values in much more time.
  values = tf.minimum(tf.maximum(values, 0.0), 255.0)
  return tf.cast(values, tf.uint8)


def _translate(image, pixels, axis):
  if not tf.convert_to_tensor(pixels).dtype.is_integer:
    x, y = (pixels, 0.0) if axis == 1 else (0.0, pixels)
    return _warp(image, [1.0, 0.0, x, 0.0, 1.0, y])
  size = tf.shape(image)[axis]
  pixels = tf.clip_by_value(pixels, -size, size)
  begin, padding = [0] * 3, [[0, 0]] * 3
  begin[axis] = tf.maximum(pixels, 0)
  padding[axis] = [tf.maximum(-pixels, 0), tf.maximum(pixels, 0)]
  padded = tf.pad(image, padding, constant_values=FILL)
  return tf.slice(padded, begin, tf.shape(image))


def _warp(image, matrix):
  """Takes pixel (x, y) of the result from matrix · (x, y, 1).

  Twice as fast as TensorFlow's ImageProjectiveTransform, with equal values:
  positions are computed on whole rows and columns and gathered at once.
  """
  size = tf.shape(image)
  height, width = tf.unstack(tf.cast(size[:2], tf.float32))
  x, y = tf.range(width)[tf.newaxis], tf.range(height)[:, tf.newaxis]
  a, b, c, d, e, f = matrix
  column = _nearest(_weighted_sum((a, x), (b, y), (c, 1.0)), width)
  row = _nearest(_weighted_sum((d, x), (e, y), (f, 1.0)), height)
  # Positions outside of the image map to a border of one pixel.
  framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=FILL)
  position = (row + 1) * (size[1] + 2) + (column + 1)
  pixels = tf.reshape(framed, [-1, 3])
  return tf.gather_nd(pixels, position[..., tf.newaxis])


def _weighted_sum(*products):
  """Sums factor * values; a static factor of 0 broadcasts no row or column."""
  terms = [f * values for f, values in products if tf.is_tensor(f) or f]
  return functools.reduce(operator.add, terms)


def _nearest(values, size):
  """Rounds halves away from 0, as the reference; outside is -1 or `size`."""
  rounded = tf.sign(values) * tf.floor(tf.abs(values) + 0.5)
  return tf.cast(tf.clip_by_value(rounded, -1.0, size), tf.int32)
