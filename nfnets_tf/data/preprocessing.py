"""Image decoding with a size guard, and the basic per-image transforms.

A transform is a callable (image, seed) -> image on uint8 [height, width, 3];
the seed, int64 [2], belongs to this example and this transform. Transforms run
eagerly and inside tf.data alike. The last one of a split has to fix the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.ranges import MAX_SIDE, accepts, ascending, integer, number, side

Transform = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Limit of height * width: 8,192 x 8,192, which takes 200 MB decoded.
MAX_PIXELS = 1 << 26

_HEADER_BYTES = 26  # PNG, GIF and BMP state their size within these


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


def fold_seed(seed: tf.Tensor, index: int | tf.Tensor) -> tf.Tensor:
  """Derives an independent seed, int64 [2], from a seed [2] and an index."""
  return tf.random.experimental.stateless_fold_in(seed, index)


def decode(image: tf.Tensor) -> tf.Tensor:
  """Decodes a JPEG, PNG, GIF or BMP string [] to uint8 [height, width, 3].

  Decoded images are returned unchanged; of an animation, the first frame.

  Raises:
    tf.errors.InvalidArgumentError: if the string cannot be decoded.
  """
  if image.dtype != tf.string:
    return image
  image = tf.io.decode_image(image, channels=3, expand_animations=False)
  # `decode_image` loses the static rank.
  return tf.ensure_shape(image, [None, None, 3])


def pixel_count(encoded: tf.Tensor) -> tf.Tensor:
  """Reads height * width from the header of an encoded image.

  To be checked before decoding: a file of a few hundred bytes may claim
  billions of pixels, which the decoder would allocate.

  Args:
    encoded: JPEG, PNG, GIF or BMP, string [].

  Returns:
    int64 []; 0 for a string of another format.

  Raises:
    tf.errors.InvalidArgumentError: if a JPEG's header cannot be read.
  """
  return tf.cond(
    tf.io.is_jpeg(encoded),
    lambda: _area(*tf.unstack(tf.io.extract_jpeg_shape(encoded)[:2])),
    lambda: _pixel_count_from_header(encoded),
  )


def _pixel_count_from_header(encoded):
  # Padded, because `substr` refuses to read past the end of a string.
  header = tf.strings.substr(encoded + b"\0" * _HEADER_BYTES, 0, _HEADER_BYTES)

  def pixels(magic, begin, dtype, **byte_order):
    matches = tf.equal(tf.strings.substr(header, 0, len(magic)), magic)
    size = 2 * dtype.size
    sides = tf.io.decode_raw(
      tf.strings.substr(header, begin, size),
      dtype,
      fixed_length=size,
      **byte_order,
    )
    sides = tf.cast(sides, tf.int64)
    if magic == b"BM":
      # The height of a BMP stored top-down is negative.
      sides = tf.abs(sides)
    else:
      sides = tf.bitwise.bitwise_and(sides, 2**32 - 1)  # they are unsigned
    return tf.where(matches, _area(*tf.unstack(sides)), 0)

  # One operation for both sides: records are also validated eagerly.
  return (
    pixels(b"\x89PNG", 16, tf.int32, little_endian=False)
    + pixels(b"GIF8", 6, tf.uint16)
    + pixels(b"BM", 18, tf.int32)
  )


def _area(height, width):
  return tf.cast(height, tf.int64) * tf.cast(width, tf.int64)


def resize_bicubic(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
  """Resizes uint8 [h, w, 3] to uint8 [height, width, 3].

  Bicubic without antialiasing, as in DeepMind's code. Bicubic weights
  overshoot, so values are rounded and clipped to [0, 255].
  """
  image = tf.image.resize(image, [height, width], method="bicubic")
  # `tf.saturate_cast` gives the same values in twice the time.
  image = tf.minimum(tf.maximum(tf.round(image), 0.0), 255.0)
  return tf.cast(image, tf.uint8)


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
        lambda: self._decode_and_crop_jpeg(image, seed),
        lambda: self._crop(decode(image), seed),
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

  def _decode_and_crop_jpeg(self, encoded, seed):
    box = self.sample_box(tf.io.extract_jpeg_shape(encoded), seed)
    return tf.io.decode_and_crop_jpeg(encoded, box, channels=3)

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
