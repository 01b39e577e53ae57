import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa
from official.vision.ops import augment as theirs

from nfnets_tf.data import randaugment, tuning
from nfnets_tf.data.randaugment import OPERATIONS, RandAugment
from nfnets_tf.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, [40, 32, 3], np.uint8)


def one_by_one(magnitude):
  """DeepMind's definition of every operation, as a user would write it."""
  share = magnitude / 10
  blend = share * 1.8 + 0.1

  def moved(image, matrix):
    image = tfa.image.transform(theirs.wrap(image), matrix)
    return theirs.unwrap(image, [128] * 3)

  def rotate(image, sign):
    angle = sign * 30 * share * math.pi / 180
    image = tfa.image.rotate(theirs.wrap(image), angle)
    return theirs.unwrap(image, [128] * 3)

  def cut_out(image, draws):
    place = tf.cast(draws * [40.0, 32.0], tf.int32)
    half = int(40 * share)
    return theirs._fill_rectangle(image, place[1], place[0], half, half, 128)

  def apply(image, choice, draws):
    sign = tf.where(draws[0] < 0.5, -1.0, 1.0)
    shear, shift = sign * 0.3 * share, sign * 100 * share
    return tf.switch_case(
      choice,
      [
        lambda: theirs.autocontrast(image),
        lambda: theirs.equalize(image),
        lambda: theirs.invert(image),
        lambda: rotate(image, sign),
        lambda: theirs.posterize(image, int(4 * share)),
        lambda: theirs.solarize(image, int(256 * share)),
        lambda: theirs.color(image, blend),
        lambda: theirs.contrast(image, blend),
        lambda: theirs.brightness(image, blend),
        lambda: theirs.sharpness(image, blend),
        lambda: moved(image, [1.0, shear, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        lambda: moved(image, [1.0, 0.0, 0.0, shear, 1.0, 0.0, 0.0, 0.0]),
        lambda: moved(image, [1.0, 0.0, shift, 0.0, 1.0, 0.0, 0.0, 0.0]),
        lambda: moved(image, [1.0, 0.0, 0.0, 0.0, 1.0, shift, 0.0, 0.0]),
        lambda: cut_out(image, draws),
        lambda: theirs.solarize_add(image, int(110 * share)),
      ],
    )

  return apply


@pytest.mark.parametrize("magnitude", [5.0, 9.0])
def test_a_thousand_images_are_those_of_the_one_by_one_form(magnitude):
  mine = RandAugment(layers=4, magnitude=magnitude)
  reference = one_by_one(magnitude)

  @tf.function
  def both(seed):
    expected = tf.constant(IMAGE)
    for choice, draws in mine.draw(seed):
      expected = reference(expected, choice, draws)
    return mine(tf.constant(IMAGE), seed), expected

  changed = 0
  for number in range(500):
    found, expected = both(tf.constant([7, number], tf.int64))
    difference = np.abs(np.subtract(found, expected, dtype=np.int32))
    # Equalizing or stretching what was one level apart may widen the gap.
    assert (difference > 1).mean() < 0.01
    changed += bool((found.numpy() != IMAGE).any())
  assert changed > 490


@pytest.mark.parametrize("position", range(len(OPERATIONS)))
def test_each_operation_is_that_of_the_table(position):
  magnitude, draws = 7.0, tf.constant([0.7, 0.2])
  mine = RandAugment(layers=1, magnitude=magnitude)
  choice = tf.constant(position)
  found = mine.apply(tf.constant(IMAGE), choice, draws)
  expected = one_by_one(magnitude)(tf.constant(IMAGE), choice, draws)
  assert found.dtype == tf.uint8
  assert np.abs(np.subtract(found, expected, dtype=np.int32)).max() <= 1


def test_every_operation_is_drawn_as_often():
  mine = RandAugment(layers=4, magnitude=5.0)
  numbers = tf.data.Dataset.range(2_000).with_options(tuning.options())
  seeds = numbers.map(
    lambda i: [choice for choice, _ in mine.draw(tf.stack([3, i]))]
  )
  choices = np.array(list(seeds.as_numpy_iterator()))
  counts = np.bincount(choices.ravel(), minlength=len(OPERATIONS))
  # 500 each, and a standard deviation of 22.
  assert len(counts) == len(OPERATIONS)
  assert counts.min() > 400 and counts.max() < 600
  # Layers draw for themselves.
  assert (choices[:, 0] == choices[:, 1]).mean() < 0.1


def test_directions_are_drawn_evenly():
  mine = RandAugment(layers=1, magnitude=5.0)
  draws = [
    float(mine.draw(tf.constant([0, i]))[0][1][0]) < 0.5 for i in range(200)
  ]
  assert 70 < sum(draws) < 130


def test_inside_and_outside_of_tf_data_alike():
  mine = RandAugment(layers=3, magnitude=9.0)
  numbers = tf.data.Dataset.range(20).with_options(tuning.options())
  inside = list(
    numbers.map(lambda i: mine(tf.constant(IMAGE), tf.stack([1, i])))
  )
  for i, image in enumerate(inside):
    assert image.shape == IMAGE.shape
    outside = mine(tf.constant(IMAGE), tf.constant([1, i], tf.int64))
    np.testing.assert_array_equal(image, outside)


def test_no_layers_and_identity_change_nothing():
  seed = tf.constant([0, 1])
  for options in ({"layers": 0}, {"layers": 3, "operations": ["identity"]}):
    mine = RandAugment(magnitude=5.0, **options)
    np.testing.assert_array_equal(mine(tf.constant(IMAGE), seed), IMAGE)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"layers": -1}, "layers = -1"),
    ({"layers": 1.5}, "layers = 1.5"),
    ({"magnitude": 50}, "magnitude = 50"),
    ({"operations": ["invert", "blur"]}, r"\['blur'\].*auto_contrast"),
    ({"operations": []}, "operations"),
  ],
)
def test_what_cannot_be(options, words):
  with pytest.raises(UserError, match=words):
    randaugment.RandAugment(**{"layers": 2, "magnitude": 5, **options})
