import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.dimensions import MAX_PIXELS, pixel_count

IMAGE = np.zeros([700, 300, 3], np.uint8)


def bmp(height, width):
  header = b"BM" + bytes(16)
  return (
    header
    + width.to_bytes(4, "little")
    + height.to_bytes(4, "little", signed=True)
  )


def gif(height, width):
  return b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")


@pytest.mark.parametrize(
  "encoded, pixels",
  [
    (tf.io.encode_jpeg(IMAGE).numpy(), 210_000),
    (tf.io.encode_png(IMAGE).numpy(), 210_000),
    (gif(65_535, 65_535), 65_535**2),
    (bmp(700, 300), 210_000),
    (bmp(-700, 300), 210_000),  # its rows go down
    (bmp(2**31 - 1, 2**31 - 1), (2**31 - 1) ** 2),
    (
      b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * b"\x7f\xff\xff\xff",
      (2**31 - 1) ** 2,
    ),
    (b"GIF8", 0),
    (b"", 0),
    (b"no image at all, but long enough for a head", 0),
  ],
)
def test_what_a_header_says(encoded, pixels):
  found = tf.function(pixel_count)(tf.constant(encoded))
  assert found.dtype == tf.int64 and found == pixels


def test_a_jpeg_without_a_size_is_an_error():
  with pytest.raises(tf.errors.InvalidArgumentError):
    pixel_count(tf.constant(b"\xff\xd8\xff\xe0"))


def test_the_bound_is_a_photograph_of_64_megapixels():
  assert MAX_PIXELS == 8192**2
