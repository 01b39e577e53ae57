import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import tuning
from nfnets_tf.data.erasing import RandomErasing
from nfnets_tf.errors import UserError

IMAGE = np.full([40, 60, 3], 7, np.uint8)


def draw(erasing, count):
  numbers = tf.data.Dataset.range(count).with_options(tuning.options())
  erased = numbers.map(lambda i: erasing(tf.constant(IMAGE), tf.stack([2, i])))
  return list(erased.as_numpy_iterator())


def box(image):
  """Returns (height, width) of the smallest box around what was changed."""
  rows, columns = np.nonzero((image != IMAGE).any(axis=-1))
  if not len(rows):
    return 0, 0
  return rows.max() - rows.min() + 1, columns.max() - columns.min() + 1


def test_boxes_have_the_area_and_the_shape_that_were_asked_for():
  erasing = RandomErasing(
    probability=1.0, area=(0.1, 0.2), aspect_ratio=(0.5, 2.0)
  )
  sizes = np.array([box(image) for image in draw(erasing, 1000)])
  areas = sizes.prod(axis=1) / (40 * 60)
  assert areas.min() > 0.08 and areas.max() < 0.22
  assert areas.min() < 0.12 and areas.max() > 0.18
  ratios = sizes[:, 0] / sizes[:, 1]
  assert ratios.min() > 0.4 and ratios.max() < 2.4
  # Drawn evenly on a logarithmic scale.
  assert (ratios < 1).sum() == pytest.approx(500, abs=60)


def test_the_box_is_noise_and_the_rest_is_untouched():
  erasing = RandomErasing(probability=1.0, area=(0.2, 0.3))
  images = np.array(draw(erasing, 50))
  changed = images[images != 7]
  assert changed.min() == 0 and changed.max() == 255
  assert changed.mean() == pytest.approx(127.5, abs=3)
  places = (images != 7).any(axis=-1).mean(axis=0)
  assert places.min() < 0.2 < places.max()
  for image in images:
    height, width = box(image)
    assert (image != 7).any(axis=-1).sum() > 0.95 * height * width


def test_as_many_images_as_were_asked_for():
  for probability, least, most in [
    (0.0, 0, 0),
    (0.25, 60, 140),
    (1.0, 400, 400),
  ]:
    images = draw(RandomErasing(probability=probability), 400)
    changed = sum((image != IMAGE).any() for image in images)
    assert least <= changed <= most


def test_a_box_that_never_fits_leaves_the_image():
  erasing = RandomErasing(probability=1.0, area=(1.0, 1.0))
  np.testing.assert_array_equal(draw(erasing, 3), [IMAGE] * 3)


@pytest.mark.parametrize(
  "options",
  [
    {"probability": 1.5},
    {"probability": 0.5, "area": (0.5, 0.2)},
    {"probability": 0.5, "aspect_ratio": (0, 1)},
  ],
)
def test_what_cannot_be(options):
  with pytest.raises(UserError, match="RandomErasing.*bind"):
    RandomErasing(**options)


def test_whether_where_and_what_are_drawn_each_for_itself():
  erasing = RandomErasing(
    probability=0.25, area=(0.1, 0.2), aspect_ratio=(1.0, 1.0)
  )
  areas = [np.prod(box(image)) / 2400 for image in draw(erasing, 400)]
  # One number for both would leave the smallest quarter alone.
  assert max(areas) > 0.18
