"""Decoding of JPEG, PNG, GIF and BMP to the pixels that a viewer shows.

TensorFlow's decoders ignore the EXIF orientation, show transparent pixels in
hidden colors, and take the indices of a BMP's palette for gray levels. All
images of training, evaluation and serving are decoded here: upright, and on
white where they are transparent.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.data.image_headers import (
  STRING,
  BmpHeader,
  GifHeader,
  in_graph,
  is_plain_jpeg,
  is_plain_png,
  jpeg_orientation,
  mark_inverted,
  out_of_line,
  read_png,
  substring,
  unsigned,
)

# Limit of height * width: 8,192 x 8,192, which takes 200 MB decoded.
MAX_PIXELS = 1 << 26

# Whether an orientation, 1 to 8, stores the rows, and the columns, in reverse.
_MIRRORED = (
  (False, False),
  (False, False),
  (False, True),
  (True, True),
  (True, False),
  (False, False),
  (True, False),
  (True, True),
  (False, True),
)

# Regular expressions of whole files, and what such files are.
_OTHER_FORMATS = {
  "": "an empty file",
  r"\x00+": "a file of zeros",
  r"RIFF.{4}WEBP.*": "a WebP image; convert it to JPEG or PNG",
  r".{4}ftypavi[fs].*": "an AVIF image; convert it to JPEG or PNG",
  r".{4}ftyp(?:hei|hev|mif1|msf1).*": (
    "a HEIC image; convert it to JPEG or PNG"
  ),
  r"(?:II[*+]\x00|MM\x00[*+]).*": "a TIFF image; convert it to PNG",
  r"(?:\x00{3}\x0cjP  |\xff\x4f\xff\x51).*": (
    "a JPEG 2000 image; convert it to PNG"
  ),
  r"(?:\x00{3}\x0cJXL |\xff\x0a).*": (
    "a JPEG XL image; convert it to JPEG or PNG"
  ),
  r"8BPS.*": "a Photoshop file; convert it to PNG",
  r"P[1-7]\s.*": "a PNM image; convert it to PNG",
  r"%PDF.*": "a PDF file",
  r"[^<]{0,9}<(?:\?xml|svg).*": "an SVG or XML file",
  r"[^<]{0,9}<(?:!DOCTYPE )?html.*": "an HTML page",
  r"version https://git-lfs.*": "a pointer of Git LFS; run git lfs pull",
}


def decode(image: tf.Tensor) -> tf.Tensor:
  """Decodes a JPEG, PNG, GIF or BMP string [] to uint8 [height, width, 3].

  The EXIF orientation of a JPEG or PNG is applied; transparent images are
  composed on white, rounded to the nearest value; of an animation, the first
  frame is taken. Decoded images are returned unchanged.

  Raises:
    tf.errors.InvalidArgumentError: if the string cannot be decoded.
  """
  return _decode(image) if image.dtype == tf.string else image


@in_graph(input_signature=[STRING])
def _decode(encoded):
  image = tf.cond(
    tf.io.is_jpeg(encoded),
    lambda: _decode_jpeg(encoded),
    lambda: decode_lossless(encoded),
  )
  return tf.ensure_shape(image, [None, None, 3])


@in_graph(input_signature=[STRING])
def decode_lossless(encoded: tf.Tensor) -> tf.Tensor:
  """Does what `decode` does for a PNG, GIF or BMP, string []."""
  image = tf.cond(
    _begins_with(encoded, b"\x89PNG"),
    lambda: _decode_png(encoded),
    lambda: _decode_gif_or_bmp(encoded),
  )
  return tf.ensure_shape(image, [None, None, 3])


def decode_and_crop_jpeg(encoded: tf.Tensor, sample_box: Callable) -> tf.Tensor:
  """Decodes a box of a JPEG, string [], upright: uint8 [height, width, 3].

  Args:
    encoded: JPEG, string [].
    sample_box: returns the box (top, left, height, width), int32 [4], for an
      upright image's height, width and channels, int32 [3].
  """
  plain = is_plain_jpeg(encoded)
  orientation = tf.cond(plain, lambda: 1, lambda: jpeg_orientation(encoded))
  shape = tf.io.extract_jpeg_shape(encoded)
  swapped = tf.gather(shape, [1, 0, 2])
  box = sample_box(tf.where(_is_transposed(orientation), swapped, shape))
  image = tf.cond(
    plain,
    lambda: tf.io.decode_and_crop_jpeg(encoded, box, channels=3),
    lambda: _decode_and_crop_other_jpeg(encoded, box, orientation),
  )
  return tf.ensure_shape(image, [None, None, 3])


@in_graph(input_signature=[STRING])
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

  def of_png():
    width, height = (unsigned(encoded, x, 4, little=False) for x in (16, 20))
    return height * width

  def of_jpeg():
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded))
    return tf.cast(height, tf.int64) * tf.cast(width, tf.int64)

  return tf.cond(
    tf.io.is_jpeg(encoded),
    of_jpeg,
    lambda: tf.cond(
      _begins_with(encoded, b"\x89PNG"),
      of_png,
      lambda: _count_gif_or_bmp(encoded),
    ),
  )


def _begins_with(encoded, magic):
  return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)


@out_of_line(input_signature=[STRING])
def _count_gif_or_bmp(encoded):
  def area(header):
    return header.height * header.width

  return tf.case(
    [
      (_begins_with(encoded, b"GIF8"), lambda: area(GifHeader(encoded))),
      (_begins_with(encoded, b"BM"), lambda: area(BmpHeader(encoded))),
    ],
    default=lambda: tf.constant(0, tf.int64),
  )


@out_of_line(input_signature=[STRING])
def _decode_gif_or_bmp(encoded):
  return tf.case(
    [
      (_begins_with(encoded, b"GIF8"), lambda: _decode_gif(encoded)),
      (_begins_with(encoded, b"BM"), lambda: _decode_bmp(encoded)),
    ],
    default=lambda: _refuse_format(encoded),
  )


def _is_transposed(orientation):
  return orientation >= 5


def _turn(image, orientation):
  """Turns a stored image, [height, width, 3], upright."""
  axes = tf.boolean_mask([0, 1], tf.gather(_MIRRORED, orientation))
  order = tf.where(_is_transposed(orientation), [1, 0, 2], [0, 1, 2])
  return tf.transpose(tf.reverse(image, axes), order)


_BOX, _SCALAR = tf.TensorSpec([4], tf.int32), tf.TensorSpec([], tf.int32)


@out_of_line(input_signature=[STRING, _BOX, _SCALAR])
def _decode_and_crop_other_jpeg(encoded, box, orientation):
  shape = tf.io.extract_jpeg_shape(encoded)[:2]
  swapped = tf.gather(box, [1, 0, 3, 2])
  box = tf.where(_is_transposed(orientation), swapped, box)
  begin, size = box[:2], box[2:]
  mirrored = tf.gather(_MIRRORED, orientation)
  begin = tf.where(mirrored, shape - begin - size, begin)
  image = tf.io.decode_and_crop_jpeg(
    mark_inverted(encoded), tf.concat([begin, size], axis=0), channels=3
  )
  return _turn(image, orientation)


def _compose_on_white(image: tf.Tensor) -> tf.Tensor:
  """Composes uint8 [height, width, 4] on white: uint8 [height, width, 3]."""
  colors, opacity = tf.split(tf.cast(image, tf.float32), [3, 1], axis=2)
  darkness = tf.round((255.0 - colors) * opacity / 255.0)
  return tf.cast(255.0 - darkness, tf.uint8)


def _decode_jpeg(encoded):
  return tf.cond(
    is_plain_jpeg(encoded),
    lambda: tf.io.decode_jpeg(encoded, channels=3),
    lambda: _decode_other_jpeg(encoded),
  )


@out_of_line(input_signature=[STRING])
def _decode_other_jpeg(encoded):
  image = tf.io.decode_jpeg(mark_inverted(encoded), channels=3)
  return _turn(image, jpeg_orientation(encoded))


def _decode_png(encoded):
  return tf.cond(
    is_plain_png(encoded),
    lambda: tf.io.decode_png(encoded, channels=3),
    lambda: _decode_other_png(encoded),
  )


@out_of_line(input_signature=[STRING])
def _decode_other_png(encoded):
  transparent, orientation = read_png(encoded)
  # The fourth channel of an opaque image of fewer than 8 bits would be wrong.
  image = tf.cond(
    transparent,
    lambda: _compose_on_white(tf.io.decode_png(encoded, channels=4)),
    lambda: tf.io.decode_png(encoded, channels=3),
  )
  return _turn(image, orientation)


def _decode_gif(encoded):
  """Decodes the first frame, on a white canvas.

  TensorFlow's decoder makes transparent pixels black and takes the largest
  frame for the canvas. It is therefore given the first frame in the corner of
  the canvas, and once more with white palettes: what is black then is
  transparent.
  """
  header = GifHeader(encoded)
  cornered = _replace(encoded, header.frame + 1, b"\0" * 4, 4)
  blank = cornered
  for i in (0, 1):
    white = b"\xff" * 3 * 256
    blank = _replace(blank, header.palettes[i], white, header.palette_bytes[i])
  image, drawn = (
    tf.io.decode_image(x, channels=3, expand_animations=False)
    for x in (cornered, blank)
  )
  image = tf.ensure_shape(tf.maximum(image, 255 - drawn), [None, None, 3])
  top, left, height, width = tf.unstack(tf.cast(header.box, tf.int32))
  image = image[:height, :width]
  below = tf.cast(header.height, tf.int32) - top - height
  beside = tf.cast(header.width, tf.int32) - left - width
  margins = [[top, below], [left, beside], [0, 0]]
  return tf.pad(image, margins, constant_values=tf.constant(255, tf.uint8))


def _replace(encoded, begin, replacement, count):
  """Replaces bytes from `begin` on by the first ones of `replacement`."""
  rest = substring(encoded, begin + count, 2**31 - 1)
  return tf.strings.join(
    [
      substring(encoded, 0, begin),
      substring(tf.constant(replacement), 0, count),
      rest,
    ]
  )


def _decode_bmp(encoded):
  header = BmpHeader(encoded)
  with tf.control_dependencies([_refuse(header.problem)]):
    size = header.row_bytes * header.height
  rows = tf.reshape(
    tf.io.decode_raw(substring(encoded, header.pixels, size), tf.uint8),
    tf.stack([header.height, header.row_bytes]),
  )
  image = tf.cond(
    header.depth <= 8,
    lambda: _look_up_colors(encoded, header, rows),
    lambda: _split_colors(header, rows),
  )
  return tf.cond(header.top_down, lambda: image, lambda: image[::-1])


def _look_up_colors(encoded, header, rows):
  """Returns the colors of rows [height, bytes] of indices into the palette."""
  # Colors that the palette lacks are black.
  palette = tf.io.decode_raw(
    substring(encoded, header.palette, header.color_bytes * header.colors),
    tf.uint8,
    fixed_length=4 * 256,
  )
  palette = tf.where(
    tf.equal(header.color_bytes, 3),
    tf.reshape(palette[: 3 * 256], [256, 3]),
    tf.reshape(palette, [256, 4])[:, :3],
  )
  depth = tf.cast(header.depth, tf.int32)
  shifts = tf.cast(tf.range(8 - depth, -1, -depth), tf.uint8)
  last = tf.cast(tf.bitwise.left_shift(1, depth) - 1, tf.uint8)
  indices = tf.bitwise.bitwise_and(
    tf.bitwise.right_shift(rows[..., tf.newaxis], shifts), last
  )
  indices = tf.reshape(indices, tf.stack([header.height, -1]))
  indices = tf.cast(indices[:, : header.width], tf.int32)
  return tf.gather(palette[:, ::-1], indices)


def _split_colors(header, rows):
  """Returns the colors of rows [height, bytes] of 16, 24 or 32 bits a pixel."""
  count = header.depth // 8
  pixels = tf.reshape(
    rows[:, : count * header.width],
    tf.stack([header.height, header.width, count]),
  )

  def by_masks():
    missing = 4 - tf.cast(count, tf.int32)
    words = tf.pad(pixels, [[0, 0], [0, 0], tf.stack([0, missing])])
    words = tf.bitcast(tf.ensure_shape(words, [None, None, 4]), tf.uint32)
    channels = tf.stack(
      [_scale_bits(words, x) for x in tf.unstack(header.masks)], axis=2
    )
    # Many writers leave alpha at 0 although the image is opaque.
    return tf.cond(
      tf.reduce_any(channels[..., 3] > 0),
      lambda: _compose_on_white(channels),
      lambda: channels[..., :3],
    )

  image = tf.cond(tf.equal(count, 3), lambda: pixels[..., ::-1], by_masks)
  return tf.ensure_shape(image, [None, None, 3])


def _scale_bits(words, mask):
  """Returns the bits of a mask, which are adjacent, as uint8 from 0 to 255."""
  bits = tf.bitwise.bitwise_and(words, tf.cast(mask, tf.uint32))
  scale = tf.math.divide_no_nan(255.0, tf.cast(mask, tf.float32))
  return tf.cast(tf.round(tf.cast(bits, tf.float32) * scale), tf.uint8)


def _refuse_format(encoded):
  """Raises an error that names the format."""
  # As text of one character a byte, which regular expressions need.
  text = tf.strings.unicode_transcode(
    substring(encoded, 0, 1024), "ISO-8859-1", "UTF-8"
  )
  name = tf.constant("no JPEG, PNG, GIF or BMP")
  for pattern, other in _OTHER_FORMATS.items():
    matches = tf.strings.regex_full_match(text, f"(?is){pattern}")
    name = tf.where(matches, other, name)
  with tf.control_dependencies([_refuse(name)]):
    return tf.zeros([0, 0, 3], tf.uint8)


def _refuse(problem):
  """Returns an operation that raises an error unless `problem` is ""."""
  return tf.debugging.Assert(tf.equal(problem, ""), [problem])
