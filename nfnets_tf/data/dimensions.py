"""How large an encoded image says it is, before anything is decoded."""

import tensorflow as tf

# 8,192 x 8,192, which takes 200 MB decoded.
MAX_PIXELS = 1 << 26

_HEAD = 26  # bytes in which a PNG, GIF or BMP has said its size


def pixel_count(encoded: tf.Tensor) -> tf.Tensor:
  """Returns height times width of a JPEG, PNG, GIF or BMP string.

  A file of a few hundred bytes may claim billions of pixels, which a decoder
  would allocate.

  Returns:
    int64 []; 0 for a string that is none of these.

  Raises:
    tf.errors.InvalidArgumentError: if a JPEG's header cannot be read.
  """
  return tf.cond(
    tf.io.is_jpeg(encoded),
    lambda: _product(*tf.unstack(tf.io.extract_jpeg_shape(encoded)[:2])),
    lambda: _others(encoded),
  )


def _others(encoded):
  # As many zeros, so that a shorter string has a head too.
  head = tf.strings.substr(encoded + b"\0" * _HEAD, 0, _HEAD)
  digits = tf.cast(
    tf.io.decode_raw(head, tf.uint8, fixed_length=_HEAD), tf.int64
  )

  def number(*places):
    return sum(digits[place] * 256**i for i, place in enumerate(places))

  def size(magic, *sides):
    starts = tf.equal(tf.strings.substr(head, 0, len(magic)), magic)
    sides = [number(*side) for side in sides]
    if magic == b"BM":
      # Negative, in two's complement, if its rows go down.
      sides = [tf.minimum(side, 2**32 - side) for side in sides]
    return tf.where(starts, _product(*sides), 0)

  return (
    size(b"\x89PNG", (23, 22, 21, 20), (19, 18, 17, 16))
    + size(b"GIF8", (8, 9), (6, 7))
    + size(b"BM", (22, 23, 24, 25), (18, 19, 20, 21))
  )


def _product(height, width):
  return tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
