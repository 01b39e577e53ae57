"""Headers of JPEG, PNG, GIF and BMP files: size, orientation, transparency.

They are read by TensorFlow operations, so that pipelines and SavedModels read
them alike. Whatever offsets and counts a header states, nothing is read beyond
the end of the string, and every search ends.
"""

from __future__ import annotations

import functools

import tensorflow as tf

# Made once in a process: graphs inline it when they are about to run.
in_graph = functools.partial(tf.function, autograph=False)
# For branches that are rarely taken: inlined into a graph, each operation of a
# branch costs time even where it is not taken.
out_of_line = functools.partial(
  in_graph, experimental_attributes={"_noinline": True}
)
STRING = tf.TensorSpec([], tf.string)

_SEARCHED = 1024  # bytes; most headers are shorter
_MAX_BLOCKS = 4096  # ends the search in a file of empty blocks

_MAX_EXIF = 1 << 17  # bytes; within them EXIF data begin and end
_EXIF = b"Exif\0\0"  # the name of a segment of a JPEG
# Markers of segments.
_FIRST_MARKER, _SCAN, _APP1, _FILL = 0xFFC0, 0xFFDA, 0xFFE1, 0xFFFF
# States that a JPEG of four channels is stored inverted.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"

# What turned images contain: an entry below with a value from 2 to 8.
_TURNED_BIG = (
  r"\x01\x12\x00(?:\x03\x00{3}\x01\x00|\x04\x00{3}\x01\x00{3})[\x02-\x08]"
)
_TURNED_LITTLE = r"\x12\x01[\x03\x04]\x00\x01\x00\x00\x00[\x02-\x08]\x00"

# An entry of a TIFF directory in big-endian order, up to the last byte of its
# value: tag Orientation, type SHORT (some write LONG), one value below 256.
_SHORT = (0x01, 0x12, 0, 3, 0, 0, 0, 1, 0)
_LONG = (0x01, 0x12, 0, 4, 0, 0, 0, 1, 0, 0, 0)
_BIG_ENDIAN = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
_LITTLE_ENDIAN_SHORT = (1, 0, 3, 2, 7, 6, 5, 4, 9, 8, 10, 11)
_LITTLE_ENDIAN_LONG = (1, 0, 3, 2, 7, 6, 5, 4, 11, 10, 9, 8)


def substring(encoded: tf.Tensor, begin, count) -> tf.Tensor:
  """Returns the part of a string [] that lies within it, perhaps empty."""
  # `substr` raises for a beginning beyond the end.
  end = tf.cast(tf.strings.length(encoded), tf.int64)
  begin = tf.minimum(tf.cast(begin, tf.int64), end)
  return tf.strings.substr(encoded, begin, tf.cast(count, tf.int64))


def unsigned(encoded: tf.Tensor, begin, count: int, little=True) -> tf.Tensor:
  """Reads an unsigned integer; bytes beyond the end of the string are 0.

  Args:
    encoded: string [].
    begin: of the integer, at least 0.
    count: its bytes, 1 to 4.
    little: whether it is little-endian, bool [].

  Returns:
    int64 [].
  """
  part = substring(encoded, begin, count)
  values = tf.io.decode_raw(part, tf.uint8, fixed_length=count)
  values = tf.where(little, values, values[::-1])
  weights = tf.constant([256**i for i in range(count)], tf.int64)
  return tf.reduce_sum(tf.cast(values, tf.int64) * weights)


def is_plain_jpeg(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a JPEG is upright and not CMYK, as most are, bool []."""
  # Padded, as `substr` raises for a beginning beyond the end.
  head = tf.strings.substr(encoded, 0, _SEARCHED) + b"\0" * 22
  # `\C` is any byte; `.` would be a character of UTF-8.
  special = r"\C*(?:Exif\x00\x00|\x00\x14\x08\C{4}\x04)\C*"
  # Of JFIF's segment and then the tables; this takes a third of the search.
  usual = (
    tf.equal(tf.strings.substr(head, 2, 4), b"\xff\xe0\x00\x10")
    & tf.equal(tf.strings.substr(head, 20, 2), b"\xff\xdb")
    & ~tf.strings.regex_full_match(head, special)
  )
  return tf.cond(
    usual, lambda: tf.constant(True), lambda: _search_jpeg(encoded)
  )


def _search_jpeg(encoded):
  head = substring(encoded, 0, _MAX_EXIF)
  turned = tf.cond(
    _contains(head, r"Exif\x00\x00"),
    lambda: _contains(head, _TURNED_LITTLE) | _contains(head, _TURNED_BIG),
    lambda: tf.constant(False),
  )
  channels = tf.io.extract_jpeg_shape(encoded)[2]
  return ~turned & tf.not_equal(channels, 4)


def _contains(text, pattern):
  # Of all searches the fastest by far: 15 microseconds for 100 kB.
  rest = tf.strings.regex_replace(text, pattern, "", replace_global=False)
  return tf.strings.length(rest) < tf.strings.length(text)


@out_of_line(input_signature=[STRING])
def jpeg_orientation(encoded: tf.Tensor) -> tf.Tensor:
  """Returns the EXIF orientation of a JPEG, string []: int32 [], 1 to 8."""
  head = substring(encoded, 0, _MAX_EXIF)
  parts = tf.raw_ops.StringSplitV2(input=[head], sep=_EXIF, maxsplit=1).values
  return tf.cond(
    tf.size(parts) > 1,
    lambda: _exif_orientation(encoded, parts[0], parts[1]),
    lambda: 1,
  )


def mark_inverted(encoded: tf.Tensor) -> tf.Tensor:
  """Marks a JPEG of four channels (CMYK) as stored inverted, string [].

  Viewers take that for granted, TensorFlow only where Adobe's segment says so.
  """
  rest = substring(encoded, 2, 2**31 - 1)
  marked = tf.not_equal(tf.io.extract_jpeg_shape(encoded)[2], 4) | _contains(
    encoded, r"\x00\x0eAdobe"
  )
  return tf.cond(
    marked,
    lambda: encoded,
    lambda: tf.strings.join([b"\xff\xd8", _ADOBE, rest]),
  )


def _exif_orientation(encoded, before, after):
  """Returns the orientation that EXIF data state.

  Args:
    encoded: JPEG, string [].
    before: its part before the name of the EXIF segment, string [].
    after: its part from the EXIF data on, string [].

  Returns:
    int32 [], from 1 to 8.
  """
  position = tf.cast(tf.strings.length(before), tf.int64) - 4
  marker, size = _read_segment(encoded, tf.maximum(position, 0))
  tiff = substring(after, 0, tf.maximum(size - 8, 0))
  orientation = tiff_orientation(tiff)
  return tf.cond(
    (orientation > 1) & tf.equal(marker, _APP1),
    lambda: tf.where(_is_segment(encoded, position), orientation, 1),
    lambda: 1,
  )


def _read_segment(encoded, position):
  """Returns a segment's marker, int32 [], and size, int64 []."""
  part = substring(encoded, position, 4)
  words = tf.io.decode_raw(part, tf.uint16, little_endian=False, fixed_length=4)
  marker, size = tf.unstack(tf.cast(words, tf.int32))
  return marker, tf.cast(size, tf.int64)


def _is_segment(encoded, position):
  """Returns whether a segment of the header begins at a position.

  If not, it belongs to another image behind or within this one.
  """

  def skip(current, _):
    marker, size = _read_segment(encoded, current)
    step = tf.where(tf.equal(marker, _FILL), tf.constant(1, tf.int64), size + 2)
    in_header = (marker >= _FIRST_MARKER) & tf.not_equal(marker, _SCAN)
    return current + step, in_header & (current + step < position)

  current, _ = tf.while_loop(
    lambda _, onward: onward,
    skip,
    [tf.constant(2, tf.int64), 2 < position],
    maximum_iterations=_MAX_BLOCKS,
  )
  return tf.equal(current, position)


def tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
  """Returns the orientation that EXIF data state, 1 if they state none.

  Args:
    tiff: EXIF data from the mark of the byte order on, string [].

  Returns:
    int32 [], from 1 to 8.
  """
  known = tf.strings.regex_full_match(tiff, r"(?:II\*\x00|MM\x00\*)\C*")
  little = tf.equal(tf.strings.substr(tiff, 0, 1), b"I")
  directory = unsigned(tiff, 4, 4, little)
  count = tf.maximum(unsigned(tiff, directory, 2, little), 1)
  entries = tf.io.decode_raw(
    substring(tiff, directory + 2, 12 * count),
    tf.uint8,
    fixed_length=12 * tf.cast(count, tf.int32),
  )
  entries = tf.cast(tf.reshape(entries, [-1, 12]), tf.int32)
  values = []
  for form, order in (
    (_SHORT, _LITTLE_ENDIAN_SHORT),
    (_LONG, _LITTLE_ENDIAN_LONG),
  ):
    order = tf.where(little, order, _BIG_ENDIAN)
    ordered = tf.gather(entries, order, axis=1)
    size = len(form)
    stated = tf.reduce_all(tf.equal(ordered[:, :size], form), axis=1)
    values.append(tf.boolean_mask(ordered[:, size], stated))
  value = tf.concat([*values, [1]], axis=0)[0]
  return tf.where(known & (1 <= value) & (value <= 8), value, 1)


def is_plain_png(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a PNG can be decoded without `read_png`, bool [].

  Its type of color has no alpha, and neither transparent colors nor EXIF come
  before the pixels.
  """
  head = tf.strings.substr(encoded, 0, _SEARCHED)
  opaque = r"\C{25}[\x00\x02\x03]\C*IDAT\C*"
  return tf.strings.regex_full_match(
    head, opaque
  ) & ~tf.strings.regex_full_match(head, r"\C*(?:tRNS|eXIf)\C*")


def read_png(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Reads whether a PNG may be transparent, and how it is to be turned.

  Args:
    encoded: PNG, string [].

  Returns:
    Whether it has an alpha channel or transparent colors, bool []; and the
    EXIF orientation that is stated before the pixels, int32 [], from 1 to 8.
  """
  end = tf.cast(tf.strings.length(encoded), tf.int64)

  def skip(position, transparent, exif, _):
    size = unsigned(encoded, position, 4, little=False)
    name = substring(encoded, position + 4, 4)
    transparent |= tf.equal(name, b"tRNS")
    exif = tf.where(tf.equal(name, b"eXIf"), position, exif)
    position += size + 12
    onward = tf.not_equal(name, b"IDAT") & (position < end)
    return position, transparent, exif, onward

  _, transparent, exif, _ = tf.while_loop(
    lambda *state: state[-1],
    skip,
    [tf.constant(8, tf.int64), tf.constant(False), end, tf.constant(True)],
    maximum_iterations=_MAX_BLOCKS,
  )
  has_alpha = unsigned(encoded, 25, 1) >= 4  # the type of color
  size = unsigned(encoded, exif, 4, little=False)
  orientation = tiff_orientation(substring(encoded, exif + 8, size))
  return has_alpha | transparent, orientation


class GifHeader:
  """Where a GIF, string [], states its size and that of its first frame.

  Attributes:
    height, width: of the canvas in pixels, int64 [].
    box: (top, left, height, width) of the first frame, int64 [4].
    frame: position of the description of the first frame, int64 [].
    palettes: positions of the palette and of the first frame's, int64 [2].
    palette_bytes: their sizes, 0 for an absent one, int64 [2].
  """

  def __init__(self, encoded):
    def palette_bytes(flags):
      exponent = tf.bitwise.bitwise_and(flags, 7)
      colors = tf.bitwise.left_shift(tf.constant(2, tf.int64), exponent)
      return tf.where(flags >= 128, 3 * colors, 0)

    size = palette_bytes(unsigned(encoded, 10, 1))
    self.frame = self._skip_extensions(encoded, 13 + size)
    left, top, width, height = (
      unsigned(encoded, self.frame + begin, 2) for begin in (1, 3, 5, 7)
    )
    self.box = tf.stack([top, left, height, width])
    # As in browsers, a canvas grows with its first frame.
    self.width = tf.maximum(unsigned(encoded, 6, 2), left + width)
    self.height = tf.maximum(unsigned(encoded, 8, 2), top + height)
    self.palettes = tf.stack([13, self.frame + 10])
    flags = unsigned(encoded, self.frame + 9, 1)
    self.palette_bytes = tf.stack([size, palette_bytes(flags)])

  def _skip_extensions(self, encoded, position):
    def skip(position, in_extension):
      # "!", a label, and blocks that state their size; 0 ends the extension.
      size = unsigned(encoded, position, 1)
      following = tf.where(in_extension, position + 1 + size, position + 2)
      return following, ~in_extension | (size > 0)

    position, _ = tf.while_loop(
      lambda position, in_extension: (
        in_extension | tf.equal(substring(encoded, position, 1), b"!")
      ),
      skip,
      [position, tf.constant(False)],
      maximum_iterations=_MAX_BLOCKS,
    )
    return position


class BmpHeader:
  """The header of a BMP, string []; its fields are int64 [] or bool [].

  Attributes:
    height, width: in pixels.
    top_down: whether the first row is the top one.
    depth: bits of a pixel.
    row_bytes: of a row of pixels, which is padded.
    pixels: position of the first row.
    palette: position of the palette.
    colors: of the palette.
    color_bytes: 3 or 4.
    masks: which bits of a pixel are red, green, blue and alpha, int64 [4].
    problem: why the pixels cannot be read, string []; "" if they can.
  """

  def __init__(self, encoded):
    size = unsigned(encoded, 14, 4)
    is_os2 = tf.equal(size, 12)  # its fields are shorter

    def field(begin, count, begin_in_os2):
      short = unsigned(encoded, begin_in_os2, 2)
      return tf.where(is_os2, short, unsigned(encoded, begin, count))

    def late_field(begin):
      return tf.where(size >= 40, unsigned(encoded, begin, 4), 0)

    height = field(22, 4, 20)
    self.top_down = height >= 2**31  # a negative number
    self.height = tf.where(self.top_down, 2**32 - height, height)
    self.width = field(18, 4, 18)
    self.depth = field(28, 2, 24)
    self.row_bytes = (self.width * self.depth + 31) // 32 * 4
    self.pixels = unsigned(encoded, 10, 4)
    self.palette = 14 + size
    self.color_bytes = tf.cast(tf.where(is_os2, 3, 4), tf.int64)
    colors = late_field(46)
    self.colors = tf.where((0 < colors) & (colors < 256), colors, 256)
    compression = late_field(30)
    self.masks = self._read_masks(encoded, size, compression)
    self.problem = self._problem(encoded, compression)

  def _read_masks(self, encoded, size, compression):
    # They follow a header of 40 bytes and are part of longer ones, of which
    # those from 56 bytes on have one of alpha.
    masks = [unsigned(encoded, begin, 4) for begin in (54, 58, 62, 66)]
    has_alpha = (size >= 56) | tf.equal(compression, 6)
    masks[3] = tf.where(has_alpha, masks[3], 0)
    default = tf.where(
      tf.equal(self.depth, 16),
      tf.constant([0x7C00, 0x3E0, 0x1F, 0], tf.int64),
      tf.constant([0xFF0000, 0xFF00, 0xFF, 0], tf.int64),
    )
    return tf.where(_is_any(compression, [3, 6]), tf.stack(masks), default)

  def _problem(self, encoded, compression):
    end = tf.cast(tf.strings.length(encoded), tf.int64)
    # Division, as a product may overflow.
    rows = (end - self.pixels) // tf.maximum(self.row_bytes, 1)
    ends_early = "a BMP that ends before its last pixel"
    problem = tf.where(rows < self.height, ends_early, "")
    has_masks = _is_any(compression, [3, 6]) & _is_any(self.depth, [16, 32])
    known = _is_any(self.depth, [1, 2, 4, 8, 16, 24, 32])
    known &= self.palette <= self.pixels
    known &= has_masks | tf.equal(compression, 0)
    other = "a BMP of an unusual kind; convert it to PNG"
    problem = tf.where(known, problem, other)
    rle = "an RLE-compressed BMP; convert it to PNG"
    return tf.where(_is_any(compression, [1, 2]), rle, problem)


def _is_any(value, values):
  return tf.reduce_any(tf.equal(value, tf.constant(values, tf.int64)))
