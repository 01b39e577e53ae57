import numpy as np
import pytest
import tensorflow as tf
from official.vision.ops import augment as reference

from nfnets_tf.data import color


def images():
  rng = np.random.default_rng(0)
  smooth = np.cumsum(rng.normal(0, 3, [40, 64, 3]), axis=0) + 100
  two = np.zeros([33, 30, 3], np.uint8)
  two[:16], two[3:6, 3:9] = 255, [5, 100, 200]
  return {
    "noise": rng.integers(0, 256, [224, 192, 3], np.uint8),
    "smooth": np.clip(smooth, 0, 255).astype(np.uint8),
    "dull": rng.integers(40, 90, [48, 37, 3], np.uint8),
    "flat": np.full([20, 30, 3], 77, np.uint8),
    "two": two,
  }


@pytest.fixture(params=images())
def image(request):
  return tf.constant(images()[request.param])


def assert_close(mine, theirs):
  assert mine.dtype == tf.uint8 and mine.shape == theirs.shape
  difference = np.abs(mine.numpy().astype(int) - theirs.numpy().astype(int))
  assert difference.max() <= 1


@pytest.mark.parametrize(
  "mine, theirs",
  [
    (color.auto_contrast, reference.autocontrast),
    (color.equalize, reference.equalize),
    (color.invert, reference.invert),
  ],
)
def test_operations_without_strength(image, mine, theirs):
  assert_close(mine(image), theirs(image))


@pytest.mark.parametrize(
  "name, values",
  [
    ("posterize", (0, 1, 2, 4, 6, 8)),
    ("solarize", (0, 1, 25, 128, 255)),
    ("solarize_add", (0, 1, 55, 110, 165, 255)),
    ("color", (0.0, 0.1, 0.55, 1.0, 1.45, 1.9, 2.8)),
    ("contrast", (0.0, 0.1, 0.55, 1.0, 1.45, 1.9, 2.8)),
    ("brightness", (0.0, 0.1, 0.55, 1.0, 1.45, 1.9, 2.8)),
    ("sharpness", (0.0, 0.1, 0.55, 1.0, 1.45, 1.9, 2.8)),
  ],
)
def test_operations_at_every_strength(image, name, values):
  for value in values:
    mine = getattr(color, name)(image, value)
    assert_close(mine, getattr(reference, name)(image, value))


def test_a_threshold_above_every_value_changes_nothing(image):
  np.testing.assert_array_equal(color.solarize(image, 256), image)
  np.testing.assert_array_equal(color.solarize(image, 384), image)


def test_worked_by_hand():
  image = tf.constant([[[0, 100, 200], [10, 128, 255]]], tf.uint8)
  np.testing.assert_array_equal(
    color.auto_contrast(image), [[[0, 0, 0], [255, 255, 255]]]
  )
  np.testing.assert_array_equal(
    color.solarize(image, 128), [[[0, 100, 55], [10, 127, 0]]]
  )
  np.testing.assert_array_equal(
    color.solarize_add(image, 200), [[[200, 255, 200], [210, 128, 255]]]
  )
  np.testing.assert_array_equal(
    color.posterize(image, 2), [[[0, 64, 192], [0, 128, 192]]]
  )
  np.testing.assert_array_equal(
    color.brightness(image, 0.5), [[[0, 50, 100], [5, 64, 127]]]
  )
