import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocess

OPERATIONS = {
  "InceptionCrop": preprocess.InceptionCrop(image_size=24),
  "Flip": preprocess.Flip(),
  "Shift": preprocess.Shift(pixels=3),
  "Resize": preprocess.Resize(image_size=24),
  "SquashCentreCrop": preprocess.SquashCentreCrop(image_size=24, margin=8),
}
SEED = tf.constant([3, 5], tf.int64)


def seeds(count):
  return [tf.constant([0, i], tf.int64) for i in range(count)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_eager_and_inside_tf_data_agree(name, random_jpeg):
  operation = OPERATIONS[name]
  eager = operation(tf.constant(random_jpeg), SEED)
  dataset = tf.data.Dataset.from_tensors(random_jpeg)
  (mapped,) = dataset.map(lambda image: operation(image, SEED))
  np.testing.assert_array_equal(eager, mapped)
  assert eager.dtype == tf.uint8


@pytest.mark.parametrize("name", OPERATIONS)
def test_decoded_images_and_strings_agree(name):
  pixels = np.random.default_rng(0).integers(0, 255, [40, 30, 3], np.uint8)
  encoded = tf.io.encode_png(pixels)
  operation = OPERATIONS[name]
  np.testing.assert_array_equal(
    operation(encoded, SEED), operation(tf.constant(pixels), SEED)
  )


@pytest.mark.parametrize("name", ["InceptionCrop", "Flip", "Shift"])
def test_draws_follow_the_seed(name, random_jpeg):
  operation, image = OPERATIONS[name], tf.constant(random_jpeg)
  results = [operation(image, seed).numpy().tobytes() for seed in seeds(8)]
  again = [operation(image, seed).numpy().tobytes() for seed in seeds(8)]
  assert results == again
  assert len(set(results)) > 1


def test_fused_crop_equals_decoding_first():
  operation = OPERATIONS["InceptionCrop"]
  pixels = np.random.default_rng(0).integers(0, 255, [60, 80, 3], np.uint8)
  # With subsampled colour a box's edges are upsampled without their outside.
  encoded = tf.io.encode_jpeg(pixels, chroma_downsampling=False)
  decoded = tf.io.decode_jpeg(encoded)
  for seed in seeds(10):
    fused = operation(encoded, seed)
    np.testing.assert_array_equal(fused, operation(decoded, seed))


def test_inception_boxes_keep_to_area_and_aspect_ratio():
  operation = preprocess.InceptionCrop(image_size=24)
  for seed in seeds(200):
    box = operation._box(tf.constant([300, 400, 3]), seed).numpy()
    top, left, height, width = box
    assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
    assert 0.075 <= height * width / 120_000 <= 1.0
    assert 0.74 <= width / height <= 1.35


def test_the_centre_is_taken_when_no_box_fits():
  operation = preprocess.InceptionCrop(image_size=32, area=(0.99, 1.0))
  # No box of 99 % of the area fits a strip of 10 to 1.
  box = operation._box(tf.constant([40, 400, 3]), SEED).numpy()
  assert box.tolist() == [10, 190, 20, 20]  # 40 * 32 / (32 + 32) pixels


def test_flip_mirrors_half_of_the_images():
  image = tf.constant(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
  flips = 0
  for seed in seeds(200):
    result = preprocess.Flip()(image, seed)
    if not np.array_equal(result, image):
      np.testing.assert_array_equal(result, image[:, ::-1])
      flips += 1
  assert 70 < flips < 130


def test_shift_moves_by_up_to_its_pixels_over_black():
  image = np.zeros([9, 9, 3], np.uint8)
  image[4, 4] = 255
  positions = set()
  for seed in seeds(300):
    moved = preprocess.Shift(pixels=2)(tf.constant(image), seed).numpy()
    assert moved.shape == (9, 9, 3) and moved.sum() == 3 * 255
    positions.add(tuple(np.argwhere(moved[..., 0])[0]))
  assert positions == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_evaluation_squashes_and_takes_the_centre():
  image = np.random.default_rng(0).integers(0, 255, [50, 90, 3], np.uint8)
  squashed = preprocess.resize_bicubic(tf.constant(image), 32, 32)
  result = OPERATIONS["SquashCentreCrop"](tf.constant(image), SEED)
  np.testing.assert_array_equal(result, squashed[4:28, 4:28])


def test_bicubic_overshoot_is_clipped():
  image = np.zeros([8, 8, 3], np.uint8)
  image[:, 4:] = 255
  resized = preprocess.resize_bicubic(tf.constant(image), 32, 32).numpy()
  # Wrapped around, dark pixels would stand beside the bright edge.
  assert resized[0, -1, 0] == 255 and resized[0, 0, 0] == 0
  assert (np.diff(resized[0, 8:24, 0].astype(int)) >= -30).all()


def test_compose_gives_every_operation_a_seed_of_its_own():
  given = []

  def spy(image, seed):
    given.append(tuple(seed.numpy()))
    return image

  preprocess.compose([spy, spy])(tf.zeros([1, 1, 3], tf.uint8), SEED)
  assert len(set(given)) == 2
