import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.data.decoding import MAX_PIXELS, pixel_count
from nfnets_tf.data.preprocessing import compose

TRANSFORMS = {
  "InceptionCrop": preprocessing.InceptionCrop(image_size=24),
  "Flip": preprocessing.Flip(),
  "Shift": preprocessing.Shift(pixels=3),
  "Resize": preprocessing.Resize(image_size=24),
  "SquashCenterCrop": preprocessing.SquashCenterCrop(image_size=24, margin=8),
}
SEED = tf.constant([3, 5], tf.int64)
BLACK = np.zeros([700, 300, 3], np.uint8)


def seeds(count):
  return [tf.constant([0, i], tf.int64) for i in range(count)]


def noise(height, width):
  rng = np.random.default_rng(0)
  return rng.integers(0, 255, [height, width, 3], np.uint8)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eager_and_inside_tf_data_agree(name, random_jpeg):
  transform = compose([TRANSFORMS[name]])
  eager = transform(tf.constant(random_jpeg), SEED)
  dataset = tf.data.Dataset.from_tensors(random_jpeg)
  dataset = dataset.map(lambda image: transform(image, SEED))
  (mapped,) = dataset
  np.testing.assert_array_equal(eager, mapped)
  assert eager.dtype == tf.uint8
  assert dataset.element_spec.shape[2] == 3  # batches have static shapes


@pytest.mark.parametrize("name", TRANSFORMS)
def test_decoded_images_and_strings_agree(name):
  pixels = noise(40, 30)
  transform = compose([TRANSFORMS[name]])
  np.testing.assert_array_equal(
    transform(tf.io.encode_png(pixels), SEED),
    transform(tf.constant(pixels), SEED),
  )


@pytest.mark.parametrize("name", ["InceptionCrop", "Flip", "Shift"])
def test_draws_follow_the_seed(name, random_jpeg):
  transform, image = compose([TRANSFORMS[name]]), tf.constant(random_jpeg)
  results = [transform(image, seed).numpy().tobytes() for seed in seeds(8)]
  again = [transform(image, seed).numpy().tobytes() for seed in seeds(8)]
  assert results == again
  assert len(set(results)) > 1


def test_cropping_while_decoding_equals_decoding_first():
  transform = TRANSFORMS["InceptionCrop"]
  # With subsampled color a box's edges are upsampled without their outside.
  encoded = tf.io.encode_jpeg(noise(60, 80), chroma_downsampling=False)
  decoded = tf.io.decode_jpeg(encoded)
  for seed in seeds(10):
    np.testing.assert_array_equal(
      transform(encoded, seed), transform(decoded, seed)
    )


def test_inception_boxes_keep_to_area_and_aspect_ratio():
  crop = preprocessing.InceptionCrop(image_size=24)
  shape = tf.constant([300, 400, 3])
  for seed in seeds(200):
    top, left, height, width = crop.sample_box(shape, seed).numpy()
    assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
    assert 0.075 <= height * width / 120_000 <= 1.0
    assert 0.74 <= width / height <= 1.35


def test_crops_the_center_when_no_box_fits():
  crop = preprocessing.InceptionCrop(image_size=32, area=(0.99, 1.0))
  # No box of 99 % of the area fits a strip of 10 to 1.
  box = crop.sample_box(tf.constant([40, 400, 3]), SEED).numpy()
  assert box.tolist() == [10, 190, 20, 20]  # 40 * 32 / (32 + 32) pixels


def test_flip_mirrors_half_of_the_images():
  image = tf.constant(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
  flips = 0
  for seed in seeds(200):
    result = preprocessing.Flip()(image, seed)
    if not np.array_equal(result, image):
      np.testing.assert_array_equal(result, image[:, ::-1])
      flips += 1
  assert 70 < flips < 130


def test_shift_moves_by_up_to_its_pixels_over_black():
  image = np.zeros([9, 9, 3], np.uint8)
  image[4, 4] = 255
  positions = set()
  for seed in seeds(300):
    moved = preprocessing.Shift(pixels=2)(tf.constant(image), seed).numpy()
    assert moved.shape == (9, 9, 3) and moved.sum() == 3 * 255
    positions.add(tuple(np.argwhere(moved[..., 0])[0]))
  assert positions == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_squash_center_crop_resizes_then_crops():
  image = tf.constant(noise(50, 90))
  squashed = preprocessing.resize_bicubic(image, 32, 32)
  result = TRANSFORMS["SquashCenterCrop"](image, SEED)
  np.testing.assert_array_equal(result, squashed[4:28, 4:28])


def test_clips_bicubic_overshoot():
  image = np.zeros([8, 8, 3], np.uint8)
  image[:, 4:] = 255
  resized = preprocessing.resize_bicubic(tf.constant(image), 32, 32).numpy()
  # Wrapped around, dark pixels would stand next to the bright edge.
  assert resized[0, -1, 0] == 255 and resized[0, 0, 0] == 0
  assert (np.diff(resized[0, 8:24, 0].astype(int)) >= -30).all()


def test_compose_decodes_and_folds_a_seed_per_transform(random_jpeg):
  calls = []

  def spy(image, seed):
    calls.append((image.dtype, *seed.numpy()))
    return image

  image = compose([spy, spy])(tf.constant(random_jpeg), SEED)
  assert len(set(calls)) == 2 and {call[0] for call in calls} == {tf.uint8}
  assert image.shape == [60, 80, 3]


def bmp(height, width):
  header = b"BM" + bytes(16) + width.to_bytes(4, "little")
  return header + height.to_bytes(4, "little", signed=True)


def gif(height, width):
  return b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")


@pytest.mark.parametrize(
  "encoded, pixels",
  [
    (tf.io.encode_jpeg(BLACK).numpy(), 210_000),
    (tf.io.encode_png(BLACK).numpy(), 210_000),
    (gif(65_535, 65_535), 65_535**2),
    (bmp(700, 300), 210_000),
    (bmp(-700, 300), 210_000),  # stored top-down
    (bmp(2**31 - 1, 2**31 - 1), (2**31 - 1) ** 2),
    (
      b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * b"\x7f\xff\xff\xff",
      (2**31 - 1) ** 2,
    ),
    (b"GIF8", 0),
    (b"", 0),
    (b"not an image, but long enough for a header", 0),
  ],
)
def test_pixel_count_reads_the_header(encoded, pixels):
  count = tf.function(pixel_count)(tf.constant(encoded))
  assert count.dtype == tf.int64 and count == pixels


def test_pixel_count_rejects_jpegs_without_a_size():
  with pytest.raises(tf.errors.InvalidArgumentError):
    pixel_count(tf.constant(b"\xff\xd8\xff\xe0"))


def test_size_limit_is_64_megapixels():
  assert MAX_PIXELS == 8192**2
