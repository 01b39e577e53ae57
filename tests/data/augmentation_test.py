import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.augmentation import (
  Augmentation,
  CutMix,
  MixUp,
  RandomErasing,
)
from nfnets_tf.data.loading import dataset_options
from nfnets_tf.errors import UserError

FIRST = tf.constant(
  np.random.default_rng(0).integers(0, 100, [24, 32, 3], np.uint8)
)
SECOND = tf.constant(
  np.random.default_rng(1).integers(150, 256, [24, 32, 3], np.uint8)
)
FLAT = np.full([40, 60, 3], 7, np.uint8)


def map_seeds(function, count):
  """Returns the results for seeds (5, 0), (5, 1), ..., inside tf.data."""
  numbers = tf.data.Dataset.range(count).with_options(dataset_options())
  results = numbers.map(lambda i: function(tf.stack([5, i])))
  return list(results.as_numpy_iterator())


def mix(mixer, count):
  return map_seeds(lambda seed: mixer(FIRST, SECOND, seed), count)


def erase(count, **options):
  erasing = RandomErasing(**options)
  return map_seeds(lambda seed: erasing(tf.constant(FLAT), seed), count)


def test_mixup_blends_by_its_weight():
  first, second = FIRST.numpy().astype(float), SECOND.numpy().astype(float)
  for image, weight in mix(MixUp(), 50):
    assert image.dtype == np.uint8
    expected = weight * first + (1 - weight) * second
    assert np.abs(image - expected).max() < 0.51


@pytest.mark.parametrize("alpha", [0.2, 3.0])
def test_mixup_draws_from_the_beta_distribution(alpha):
  weights = np.array([weight for _, weight in mix(MixUp(alpha=alpha), 3_000)])
  assert weights.min() >= 0 and weights.max() <= 1
  assert abs(weights.mean() - 0.5) < 0.04
  variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
  assert abs(weights.var() / variance - 1) < 0.1


def test_cutmix_weight_is_the_area_of_its_box():
  boxes, centers = 0, []
  for image, weight in mix(CutMix(), 200):
    of_first = (image == FIRST.numpy()).all(axis=-1)
    of_second = (image == SECOND.numpy()).all(axis=-1)
    assert (of_first ^ of_second).all()
    assert weight == pytest.approx(of_first.mean(), abs=1e-6)
    rows, columns = np.nonzero(of_first)
    if len(rows):
      boxes += 1
      centers.append((rows.mean() / 24, columns.mean() / 32))
      box = of_first[rows.min() : rows.max() + 1]
      assert box[:, columns.min() : columns.max() + 1].all()
  assert boxes > 150
  # Row and column are drawn independently.
  assert abs(np.corrcoef(np.array(centers).T)[0, 1]) < 0.3


def test_cutmix_boxes_have_all_sizes_and_stop_at_the_border():
  weights = np.array([weight for _, weight in mix(CutMix(), 2_000)])
  # Uniform center: of a box of half-sides h, (1 - h/2)^2 lies inside.
  area = np.linspace(0, 1, 100_001)
  expected = (area * (1 - np.sqrt(area) / 4) ** 2).mean()
  assert weights.mean() == pytest.approx(expected, abs=0.03)
  assert weights.min() < 0.01 and weights.max() > 0.8


@pytest.mark.parametrize("mixer", [MixUp(), CutMix()])
def test_mixers_agree_inside_and_outside_of_tf_data(mixer):
  for i, (image, weight) in enumerate(mix(mixer, 5)):
    outside = mixer(FIRST, SECOND, tf.constant([5, i], tf.int64))
    np.testing.assert_array_equal(image, outside[0])
    assert weight == outside[1].numpy()


def box_size(image):
  """Returns (height, width) of the smallest box around what was changed."""
  rows, columns = np.nonzero((image != FLAT).any(axis=-1))
  if not len(rows):
    return 0, 0
  return rows.max() - rows.min() + 1, columns.max() - columns.min() + 1


def test_erased_boxes_have_the_given_area_and_aspect_ratio():
  images = erase(1000, probability=1.0, area=(0.1, 0.2), aspect_ratio=(0.5, 2))
  sizes = np.array([box_size(image) for image in images])
  areas = sizes.prod(axis=1) / (40 * 60)
  assert areas.min() > 0.08 and areas.max() < 0.22
  assert areas.min() < 0.12 and areas.max() > 0.18
  ratios = sizes[:, 0] / sizes[:, 1]
  assert ratios.min() > 0.4 and ratios.max() < 2.4
  # Log-uniform.
  assert (ratios < 1).sum() == pytest.approx(500, abs=60)


def test_erasing_replaces_only_a_box_by_noise():
  images = np.array(erase(50, probability=1.0, area=(0.2, 0.3)))
  changed = images[images != 7]
  assert changed.min() == 0 and changed.max() == 255
  assert changed.mean() == pytest.approx(127.5, abs=3)
  places = (images != 7).any(axis=-1).mean(axis=0)
  assert places.min() < 0.2 < places.max()
  for image in images:
    height, width = box_size(image)
    assert (image != 7).any(axis=-1).sum() > 0.95 * height * width


def test_erasing_changes_the_given_fraction_of_images():
  for probability, least, most in [(0, 0, 0), (0.25, 60, 140), (1, 400, 400)]:
    images = erase(400, probability=probability)
    changed = sum((image != FLAT).any() for image in images)
    assert least <= changed <= most


def test_erasing_draws_whether_and_how_much_independently():
  images = erase(400, probability=0.25, area=(0.1, 0.2), aspect_ratio=(1, 1))
  areas = [np.prod(box_size(image)) / 2400 for image in images]
  # One number for both would allow the smallest quarter only.
  assert max(areas) > 0.18


def test_erasing_skips_boxes_that_never_fit():
  images = erase(3, probability=1.0, area=(1.0, 1.0))
  np.testing.assert_array_equal(images, [FLAT] * 3)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: MixUp(alpha=0), "MixUp.alpha = 0 "),
    (lambda: RandomErasing(probability=1.5), "probability = 1.5"),
    (lambda: RandomErasing(probability=1, area=(0.5, 0.2)), "area = "),
    (lambda: RandomErasing(probability=1, aspect_ratio=(0, 1)), "ratio = "),
    (lambda: Augmentation(multiplicity=1.5), "multiplicity = 1.5"),
  ],
)
def test_rejects_arguments_out_of_range(make, message):
  with pytest.raises(UserError, match=f"{message}.*expected"):
    make()
