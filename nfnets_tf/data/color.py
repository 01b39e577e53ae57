"""The colour operations of RandAugment, on uint8 [height, width, 3].

They compute what the AutoAugment code computes that DeepMind's input pipeline
shares (Cubuk et al. 2019, arXiv 1909.13719), quirks included, within one grey
level: a product is rounded down, and the grey that `contrast` blends with is
height * width / 256. What differs is the form. A table of 256 values and a
`tf.where` cost five to ten times what arithmetic on whole rows does.
"""

import tensorflow as tf

_LUMA = (0.2989, 0.587, 0.114)
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
  """Stretches every channel to the whole range; a flat channel is left."""
  low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float32)
  high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float32)
  flat = tf.equal(high, low)
  scale = tf.where(flat, 1.0, 255.0 / tf.where(flat, 1.0, high - low))
  offset = tf.where(flat, 0.0, -low * scale)
  rows = tf.cast(_rows(image), tf.float32)
  rows = rows * _row_of(scale, image) + _row_of(offset, image)
  # Within [0, 255] but for rounding, which the cast cuts off.
  return tf.reshape(tf.cast(rows, tf.uint8), tf.shape(image))


def equalize(image: tf.Tensor) -> tf.Tensor:
  """Spreads every channel's histogram evenly; a flat channel is left."""
  rows = tf.cast(_rows(image), tf.int32)
  index = rows + _row_of(tf.constant([0, 256, 512]), image)
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
  # For single values twice as fast as `tf.gather`.
  values = tf.gather_nd(table, index[..., tf.newaxis])
  return tf.reshape(values, tf.shape(image))


def invert(image: tf.Tensor) -> tf.Tensor:
  """Turns every value into 255 minus itself."""
  return tf.bitwise.invert(image)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
  """Keeps the first `bits` bits of every value, from 1 to 8.

  0 keeps one, because TensorFlow shifts a byte by seven bits at most.
  """
  mask = 256 - (1 << (8 - max(bits, 1)))
  return tf.bitwise.bitwise_and(image, tf.constant(mask, tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
  """Inverts the values from `threshold` on; 256 leaves the image as it is."""
  if threshold > 255:
    return image
  inverted = tf.cast(image >= threshold, tf.uint8) * 255
  return tf.bitwise.bitwise_xor(image, inverted)


def solarize_add(
  image: tf.Tensor, addition: int, threshold: int = 128
) -> tf.Tensor:
  """Adds `addition`, from 0 to 255, to the values below `threshold`."""
  below = tf.cast(image < threshold, tf.uint8)
  if threshold + addition <= 256:
    return image + below * addition
  added = tf.minimum(image, 255 - addition) + addition
  return image + (added - image) * below


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends with the grey image: 0 gives grey, 1 the image, 2 more colour."""
  # TensorFlow's conversion scales grey levels by 255.5 / 255, then truncates.
  mix = tf.constant([[w * 255.5 / 255] * 3 for w in _LUMA])
  values = tf.cast(tf.reshape(image, [-1, 3]), tf.float32)
  grey = tf.floor(tf.matmul(values, mix))
  blended = _to_uint8(grey + factor * (values - grey))
  return tf.reshape(blended, tf.shape(image))


def contrast(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends with one grey: 0 gives the grey, 1 the image, 2 more contrast."""
  pixels = tf.cast(tf.reduce_prod(tf.shape(image)[:2]), tf.float32)
  grey = tf.floor(tf.minimum(pixels / 256.0, 255.0))
  values = tf.cast(image, tf.float32)
  return _to_uint8(grey + factor * (values - grey))


def brightness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Multiplies by `factor`: 0 gives black, 1 the image."""
  return _to_uint8(factor * tf.cast(image, tf.float32))


def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Blends with the smoothed image: 0 gives that, 1 the image, 2 sharper.

  The border of one pixel stays as it is.
  """
  values = tf.cast(image, tf.float32)
  kernel = tf.constant(_SMOOTH, tf.float32, [3, 3, 1, 1]) / 13.0
  smooth = tf.nn.depthwise_conv2d(
    values[tf.newaxis], tf.tile(kernel, [1, 1, 3, 1]), [1] * 4, "VALID"
  )
  change = (1.0 - factor) * (tf.floor(smooth[0]) - values[1:-1, 1:-1])
  return _to_uint8(values + tf.pad(change, [[1, 1], [1, 1], [0, 0]]))


def _rows(image: tf.Tensor) -> tf.Tensor:
  """Reshapes to [height, width * 3], over which rows broadcast fast."""
  shape = tf.shape(image)
  return tf.reshape(image, [shape[0], shape[1] * shape[2]])


def _row_of(channels: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  return tf.tile(channels, tf.shape(image)[1:2])


def _to_uint8(values: tf.Tensor) -> tf.Tensor:
  # `tf.clip_by_value` takes much longer for the same.
  values = tf.minimum(tf.maximum(values, 0.0), 255.0)
  return tf.cast(values, tf.uint8)
