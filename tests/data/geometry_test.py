import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa
from official.vision.ops.augment import unwrap, wrap

from nfnets_tf.data import geometry

IMAGE = tf.constant(
  np.random.default_rng(0).integers(0, 256, [48, 61, 3], np.uint8)
)


def reference(transform):
  return unwrap(transform(wrap(IMAGE)), [geometry.FILL] * 3)


@pytest.mark.parametrize("degrees", [-45.0, -30.0, -7.0, 0.0, 3.0, 15.0, 90.0])
def test_rotate(degrees):
  expected = reference(
    lambda image: tfa.image.rotate(image, degrees * math.pi / 180)
  )
  np.testing.assert_array_equal(geometry.rotate(IMAGE, degrees), expected)


@pytest.mark.parametrize("level", [-0.45, -0.3, -0.15, 0.0, 0.05, 0.15, 0.25])
def test_shear(level):
  along_x = reference(
    lambda x: tfa.image.transform(x, [1.0, level, 0, 0, 1.0, 0, 0, 0])
  )
  np.testing.assert_array_equal(geometry.shear_x(IMAGE, level), along_x)
  along_y = reference(
    lambda x: tfa.image.transform(x, [1.0, 0, 0, level, 1.0, 0, 0, 0])
  )
  np.testing.assert_array_equal(geometry.shear_y(IMAGE, level), along_y)


@pytest.mark.parametrize("pixels", [-100, -48, -10, -2.5, 0, 1, 2.5, 3.3, 50])
def test_translate(pixels):
  along_x = reference(lambda x: tfa.image.translate(x, [-pixels, 0]))
  np.testing.assert_array_equal(geometry.translate_x(IMAGE, pixels), along_x)
  along_y = reference(lambda x: tfa.image.translate(x, [0, -pixels]))
  np.testing.assert_array_equal(geometry.translate_y(IMAGE, pixels), along_y)


@pytest.mark.parametrize("row, column", [(20, 30), (0, 0), (47, 60), (5, 58)])
@pytest.mark.parametrize("half", [0, 4, 40])
def test_cut_out(row, column, half):
  expected = IMAGE.numpy()
  rows = slice(max(row - half, 0), row + half)
  expected[rows, max(column - half, 0) : column + half] = geometry.FILL
  found = geometry.cut_out(IMAGE, tf.constant(row), tf.constant(column), half)
  np.testing.assert_array_equal(found, expected)
