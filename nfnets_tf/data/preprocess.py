"""What happens to one image: decoding, cropping, flipping, resizing.

An operation is a callable (image, seed) -> image. The image is an encoded
string or uint8 [height, width, 3]; the seed, int64 [2], is the example's own.
Operations run eagerly and inside tf.data alike; the last one fixes the size.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def compose(operations: Sequence[Operation]) -> Operation:
  """Returns one operation that applies all, each with a seed of its own."""

  def apply(image, seed):
    for index, operation in enumerate(operations):
      own_seed = tf.random.experimental.stateless_fold_in(seed, index)
      image = operation(image, own_seed)
    return image

  return apply


def decode(image: tf.Tensor) -> tf.Tensor:
  """Decodes a JPEG, PNG, GIF or BMP string to uint8 [height, width, 3].

  An image that is decoded already is returned as it is.
  """
  if image.dtype != tf.string:
    return image
  image = tf.io.decode_image(image, channels=3, expand_animations=False)
  return tf.ensure_shape(image, [None, None, 3])


def resize_bicubic(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
  """Resizes uint8 to uint8; bicubic without antialiasing, as DeepMind's code.

  Bicubic weights overshoot, so values are rounded and clipped to [0, 255].
  """
  image = tf.image.resize(image, [height, width], method="bicubic")
  # `tf.saturate_cast` takes twice as long for the same.
  image = tf.minimum(tf.maximum(tf.round(image), 0.0), 255.0)
  return tf.cast(image, tf.uint8)


class InceptionCrop:
  """Cuts out a random box and resizes it to a square.

  The area is 8 to 100 % of the image, the aspect ratio 3/4 to 4/3, with ten
  attempts (Brock et al. 2021, appendix A.1); if none fits, the centre is taken.
  A JPEG is decoded inside the box only.

  Args:
    image_size: pixels of a side of the result.
    area: smallest and largest share of the image's area.
  """

  def __init__(self, *, image_size: int, area: Sequence[float] = (0.08, 1.0)):
    self.image_size = image_size
    self.area = tuple(area)

  def __call__(self, image, seed):
    if image.dtype == tf.string:
      image = tf.cond(
        tf.io.is_jpeg(image),
        lambda: self._crop_jpeg(image, seed),
        lambda: self._crop(decode(image), seed),
      )
    else:
      image = self._crop(image, seed)
    return resize_bicubic(image, self.image_size, self.image_size)

  def box(self, encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns [top, left, height, width] of what is cut from a JPEG string."""
    return self._box(tf.io.extract_jpeg_shape(encoded), seed)

  def _crop_jpeg(self, encoded, seed):
    box = self.box(encoded, seed)
    return tf.io.decode_and_crop_jpeg(encoded, box, channels=3)

  def _crop(self, image, seed):
    top, left, height, width = tf.unstack(self._box(tf.shape(image), seed))
    return image[top : top + height, left : left + width]

  def _box(self, shape, seed):
    """Returns [top, left, height, width] in pixels."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape,
      bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
      seed=seed,
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=self.area,
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    box = tf.concat([begin[:2], size[:2]], axis=0)
    # The sampler gives the whole image when every attempt has failed.
    failed = tf.reduce_all(tf.equal(box[2:], shape[:2]))
    return tf.where(failed, self._centre(shape), box)

  def _centre(self, shape):
    ratio = self.image_size / (self.image_size + 32)
    shortest = tf.cast(tf.reduce_min(shape[:2]), tf.float32)
    side = tf.maximum(tf.cast(ratio * shortest, tf.int32), 1)
    return tf.stack(
      [(shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2, side, side]
    )


class Flip:
  """Mirrors half of the images left to right."""

  def __call__(self, image, seed):
    return tf.image.stateless_random_flip_left_right(decode(image), seed)


class Shift:
  """Moves the image by up to `pixels` along each axis over black.

  For images such as digits, where a mirror image means something else.

  Args:
    pixels: the furthest move.
  """

  def __init__(self, *, pixels: int):
    self.pixels = pixels

  def __call__(self, image, seed):
    image = decode(image)
    margin = [self.pixels, self.pixels]
    padded = tf.pad(image, [margin, margin, [0, 0]])
    return tf.image.stateless_random_crop(padded, tf.shape(image), seed)


class Resize:
  """Resizes to a square, whatever the aspect ratio.

  Args:
    image_size: pixels of a side of the result.
  """

  def __init__(self, *, image_size: int):
    self.image_size = image_size

  def __call__(self, image, seed):
    del seed
    return resize_bicubic(decode(image), self.image_size, self.image_size)


class SquashCentreCrop:
  """DeepMind's evaluation: squash to a larger square, then cut its centre.

  Args:
    image_size: pixels of a side of the result.
    margin: how much larger the square is.
  """

  def __init__(self, *, image_size: int, margin: int = 32):
    self.image_size = image_size
    self.margin = margin

  def __call__(self, image, seed):
    del seed
    side = self.image_size + self.margin
    begin, end = self.margin // 2, self.margin // 2 + self.image_size
    return resize_bicubic(decode(image), side, side)[begin:end, begin:end]
