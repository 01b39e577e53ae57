import importlib
import math

import numpy as np
import pytest
import tensorflow as tf
from official.vision.ops import augment as reference

from nfnets_tf.data import randaugment
from nfnets_tf.data.loading import dataset_options
from nfnets_tf.data.randaugment import (
  DEEPMIND_OPERATIONS,
  FILL,
  OPERATIONS,
  RandAugment,
)
from nfnets_tf.errors import UserError

HAS_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
IMAGE = np.random.default_rng(0).integers(0, 256, [40, 32, 3], np.uint8)


def color_images():
  rng = np.random.default_rng(0)
  smooth = np.cumsum(rng.normal(0, 3, [40, 64, 3]), axis=0) + 100
  two_values = np.zeros([33, 30, 3], np.uint8)
  two_values[:16], two_values[3:6, 3:9] = 255, [5, 100, 200]
  return {
    "noise": rng.integers(0, 256, [224, 192, 3], np.uint8),
    "smooth": np.clip(smooth, 0, 255).astype(np.uint8),
    "dull": rng.integers(40, 90, [48, 37, 3], np.uint8),
    "flat": np.full([20, 30, 3], 77, np.uint8),
    "two values": two_values,
  }


@pytest.fixture(params=color_images())
def color_image(request):
  return tf.constant(color_images()[request.param])


def contrast_twin(image, factor):
  """DeepMind's contrast, which the Model Garden had until 2.16.

  The gray level is a histogram's mean count, not the mean of the gray levels.
  """
  gray = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
  histogram = tf.histogram_fixed_width(gray, [0, 255], nbins=256)
  mean = tf.reduce_sum(tf.cast(histogram, tf.float32)) / 256.0
  level = tf.cast(tf.clip_by_value(mean, 0.0, 255.0), tf.uint8)
  return reference.blend(tf.fill(image.shape, level), image, factor)


TWINS = {"contrast": contrast_twin}


def difference(result, expected):
  assert result.dtype == tf.uint8 and result.shape == expected.shape
  return np.abs(np.subtract(result, expected, dtype=np.int32))


def test_color_operations_are_within_a_gray_level(color_image):
  for function, twin in [
    (randaugment.auto_contrast, reference.autocontrast),
    (randaugment.equalize, reference.equalize),
    (randaugment.invert, reference.invert),
  ]:
    assert difference(function(color_image), twin(color_image)).max() <= 1


@pytest.mark.parametrize(
  "name, values",
  [
    ("posterize", (0, 1, 2, 4, 6, 8)),
    ("solarize", (0, 1, 25, 128, 255)),
    ("solarize_add", (0, 1, 55, 110, 165, 255)),
    ("color", (0.0, 0.1, 0.55, 1.0, 1.45, 2.8)),
    ("contrast", (0.0, 0.1, 0.55, 1.0, 1.45, 2.8)),
    ("brightness", (0.0, 0.1, 0.55, 1.0, 1.45, 2.8)),
    ("sharpness", (0.0, 0.1, 0.55, 1.0, 1.45, 2.8)),
  ],
)
def test_color_operations_at_every_strength(color_image, name, values):
  for value in values:
    result = getattr(randaugment, name)(color_image, value)
    twin = TWINS.get(name) or getattr(reference, name)
    expected = twin(color_image, value)
    assert difference(result, expected).max() <= 1


def test_color_operations_of_a_worked_example():
  image = tf.constant([[[0, 100, 200], [10, 128, 255]]], tf.uint8)
  for name, arguments, expected in [
    ("auto_contrast", (), [[[0, 0, 0], [255, 255, 255]]]),
    ("solarize", (128,), [[[0, 100, 55], [10, 127, 0]]]),
    ("solarize", (256,), image),
    ("solarize_add", (200,), [[[200, 255, 200], [210, 128, 255]]]),
    ("posterize", (2,), [[[0, 64, 192], [0, 128, 192]]]),
    ("brightness", (0.5,), [[[0, 50, 100], [5, 64, 127]]]),
    ("identity", (), image),
  ]:
    result = getattr(randaugment, name)(image, *arguments)
    np.testing.assert_array_equal(result, expected)


def transform_twin(image, matrix):
  """Returns a warped image, gray outside of it, as the Model Garden does.

  Args:
    image: uint8 [height, width, 3].
    matrix: of the output's coordinates, [8], as TensorFlow's operation has it.
  """
  wrapped = reference.wrap(tf.convert_to_tensor(image))
  warped = tf.raw_ops.ImageProjectiveTransformV3(
    images=wrapped[None],
    transforms=[tf.cast(tf.stack(matrix), tf.float32)],
    output_shape=wrapped.shape[:2],
    fill_value=0.0,
    interpolation="NEAREST",
    fill_mode="CONSTANT",
  )
  return reference.unwrap(warped[0], [FILL] * 3)


def rotation(image, angle):
  """Returns the matrix that rotates an image about its center, by radians."""
  height, width = image.shape[0] - 1, image.shape[1] - 1
  angle = tf.cast(angle, tf.float32)
  sin, cos = tf.sin(angle), tf.cos(angle)
  left = (width - (cos * width - sin * height)) / 2
  top = (height - (sin * width + cos * height)) / 2
  return [cos, -sin, left, sin, cos, top, 0.0, 0.0]


@pytest.mark.skipif(
  not HAS_ADDONS,
  reason="tensorflow-addons cannot be imported beside this TensorFlow",
)
def test_twins_of_geometry_equal_tensorflow_addons():
  tfa = importlib.import_module("tensorflow_addons")
  wrapped = reference.wrap(tf.constant(IMAGE))
  angle, shear = 0.4, [1.0, 0.3, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
  shift = [1.0, 0.0, 2.5, 0.0, 1.0, -7.0, 0.0, 0.0]
  for matrix, expected in [
    (rotation(IMAGE, angle), tfa.image.rotate(wrapped, angle)),
    (shear, tfa.image.transform(wrapped, shear)),
    (shift, tfa.image.translate(wrapped, [-2.5, 7.0])),
  ]:
    np.testing.assert_array_equal(
      transform_twin(IMAGE, matrix), reference.unwrap(expected, [FILL] * 3)
    )


@pytest.mark.parametrize("degrees", [-45.0, -30.0, -7.0, 0.0, 3.0, 15.0, 90.0])
def test_rotate_equals_its_twin(degrees):
  matrix = rotation(IMAGE, degrees * math.pi / 180)
  expected = transform_twin(IMAGE, matrix)
  result = randaugment.rotate(tf.constant(IMAGE), degrees)
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("level", [-0.45, -0.3, -0.15, 0.0, 0.05, 0.25])
def test_shear_equals_its_twin(level):
  for shear, matrix in [
    (randaugment.shear_x, [1.0, level, 0, 0, 1.0, 0, 0, 0]),
    (randaugment.shear_y, [1.0, 0, 0, level, 1.0, 0, 0, 0]),
  ]:
    expected = transform_twin(IMAGE, matrix)
    result = shear(tf.constant(IMAGE), level)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("pixels", [-100, -48, -10, -2.5, 0, 1, 2.5, 3.3, 50])
def test_translate_equals_its_twin(pixels):
  for translate, matrix in [
    (randaugment.translate_x, [1.0, 0, pixels, 0, 1.0, 0, 0, 0]),
    (randaugment.translate_y, [1.0, 0, 0, 0, 1.0, pixels, 0, 0]),
  ]:
    expected = transform_twin(IMAGE, matrix)
    result = translate(tf.constant(IMAGE), pixels)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("row, column", [(20, 30), (0, 0), (39, 31), (5, 28)])
@pytest.mark.parametrize("half", [0, 4, 40])
def test_cut_out_fills_a_clipped_square(row, column, half):
  expected = IMAGE.copy()
  rows = slice(max(row - half, 0), row + half)
  expected[rows, max(column - half, 0) : column + half] = FILL
  center = tf.constant([(row + 0.5) / 40, (column + 0.5) / 32])
  result = randaugment.cut_out(tf.constant(IMAGE), center, half)
  np.testing.assert_array_equal(result, expected)


def naive_operations(magnitude):
  """DeepMind's definition of every operation, as a user would write it."""
  fraction = magnitude / 10
  blend = fraction * 1.8 + 0.1

  def cut_out(image, draws):
    place, half = draws * [40.0, 32.0], int(40 * fraction)
    rows, columns = tf.meshgrid(tf.range(40), tf.range(32), indexing="ij")
    row, column = tf.unstack(tf.cast(place, tf.int32))
    inside = (rows >= row - half) & (rows < row + half)
    inside &= (columns >= column - half) & (columns < column + half)
    return tf.where(inside[..., None], tf.constant(128, tf.uint8), image)

  def apply(image, choice, draws):
    sign = tf.where(draws[0] < 0.5, -1.0, 1.0)
    shear, shift = sign * 0.3 * fraction, sign * 100 * fraction
    return tf.switch_case(
      choice,
      [
        lambda: reference.autocontrast(image),
        lambda: reference.equalize(image),
        lambda: reference.invert(image),
        lambda: transform_twin(
          image, rotation(image, sign * 30 * fraction * math.pi / 180)
        ),
        lambda: reference.posterize(image, int(4 * fraction)),
        lambda: reference.solarize(image, int(256 * fraction)),
        lambda: reference.color(image, blend),
        lambda: contrast_twin(image, blend),
        lambda: reference.brightness(image, blend),
        lambda: reference.sharpness(image, blend),
        lambda: transform_twin(
          image, [1.0, shear, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
        ),
        lambda: transform_twin(
          image, [1.0, 0.0, 0.0, shear, 1.0, 0.0, 0.0, 0.0]
        ),
        lambda: transform_twin(
          image, [1.0, 0.0, shift, 0.0, 1.0, 0.0, 0.0, 0.0]
        ),
        lambda: transform_twin(
          image, [1.0, 0.0, 0.0, 0.0, 1.0, shift, 0.0, 0.0]
        ),
        lambda: cut_out(image, draws),
        lambda: reference.solarize_add(image, int(110 * fraction)),
      ],
    )

  return apply


@pytest.mark.parametrize("position", range(len(DEEPMIND_OPERATIONS)))
def test_operation_equals_deepminds(position):
  magnitude, choice = 7.0, tf.constant(position)
  augment = RandAugment(layers=1, magnitude=magnitude)
  naive = naive_operations(magnitude)
  for draws in ([0.7, 0.2], [0.1, 0.9]):
    draws = tf.constant(draws)
    result = augment.apply(tf.constant(IMAGE), choice, draws)
    expected = naive(tf.constant(IMAGE), choice, draws)
    assert difference(result, expected).max() <= 1


# At magnitude 5 four of the sixteen operations change nothing.
@pytest.mark.parametrize(
  "magnitude, least",
  [(9.0, 270), pytest.param(5.0, 240, marks=pytest.mark.soak)],
)
def test_equals_the_naive_form_on_hundreds_of_images(magnitude, least):
  augment = RandAugment(layers=2, magnitude=magnitude)
  naive = naive_operations(magnitude)

  @tf.function
  def both(seed):
    expected = tf.constant(IMAGE)
    for choice, draws in augment.draw(seed):
      expected = naive(expected, choice, draws)
    return augment(tf.constant(IMAGE), seed), expected

  changed = 0
  for number in range(300):
    result, expected = both(tf.constant([7, number], tf.int64))
    # Equalizing or stretching what was one level apart may widen the gap.
    assert (difference(result, expected) > 1).mean() < 0.01
    changed += bool((result.numpy() != IMAGE).any())
  assert changed > least


def test_operations_and_signs_are_drawn_uniformly():
  augment = RandAugment(layers=4, magnitude=5.0)
  numbers = tf.data.Dataset.range(2_000).with_options(dataset_options())
  drawn = numbers.map(lambda i: tuple(zip(*augment.draw(tf.stack([3, i])))))
  choices, draws = map(np.array, zip(*drawn.as_numpy_iterator()))
  counts = np.bincount(choices.ravel(), minlength=len(DEEPMIND_OPERATIONS))
  # 500 each, with a standard deviation of 22.
  assert len(counts) == 16 and counts.min() > 400 and counts.max() < 600
  # Layers draw independently.
  assert (choices[:, 0] == choices[:, 1]).mean() < 0.1
  assert (draws[..., 0] < 0.5).mean() == pytest.approx(0.5, abs=0.03)


def test_draws_are_pinned():
  """A change here would change the augmentation of runs that are resumed."""
  drawn = RandAugment(layers=4, magnitude=5.0).draw(tf.constant([3, 1]))
  assert [int(choice) for choice, _ in drawn] == [7, 8, 11, 14]


def test_agrees_inside_and_outside_of_tf_data():
  augment = RandAugment(layers=3, magnitude=9.0)
  numbers = tf.data.Dataset.range(10).with_options(dataset_options())
  inside = numbers.map(lambda i: augment(tf.constant(IMAGE), tf.stack([1, i])))
  for i, image in enumerate(inside):
    assert image.shape == IMAGE.shape
    outside = augment(tf.constant(IMAGE), tf.constant([1, i], tf.int64))
    np.testing.assert_array_equal(image, outside)


def test_no_layers_and_identity_change_nothing():
  for options in ({"layers": 0}, {"layers": 3, "operations": ["identity"]}):
    augment = RandAugment(magnitude=5.0, **options)
    image = augment(tf.constant(IMAGE), tf.constant([0, 1]))
    np.testing.assert_array_equal(image, IMAGE)


def test_accepts_all_registered_operations():
  assert set(DEEPMIND_OPERATIONS) < set(OPERATIONS)
  RandAugment(layers=1, magnitude=5, operations=list(OPERATIONS))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"layers": -1}, "layers = -1"),
    ({"layers": 1.5}, "layers = 1.5"),
    ({"magnitude": 50}, "magnitude = 50"),
    ({"operations": ["invert", "blur"]}, r"'blur'\] is invalid.*auto_contrast"),
    ({"operations": []}, "operations"),
  ],
)
def test_rejects_arguments_out_of_range(options, message):
  with pytest.raises(UserError, match=message):
    RandAugment(**{"layers": 2, "magnitude": 5, **options})
