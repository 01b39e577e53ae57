import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.optim.adaptive_clipping import (
  clip_unitwise,
  max_gradient_norm,
  unitwise_norm,
)

SHAPES = [(), (5,), (4, 3), (3, 3, 2, 5), (1, 1, 1, 6)]


def units(shape):
  """Index of each unit: DeepMind's rule on the squeezed rank."""
  if len([n for n in shape if n != 1]) <= 1:
    return [...]
  return [(..., unit) for unit in range(shape[-1])]


def naive(gradient, weight, clipping, eps):
  out = np.array(gradient, np.float64)
  for unit in units(gradient.shape):
    largest = clipping * max(np.sqrt((weight[unit] ** 2).sum()), eps)
    norm = np.sqrt((gradient[unit] ** 2).sum())
    if norm > largest:
      out[unit] = gradient[unit] * largest / max(norm, 1e-6)
  return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_equals_a_loop_over_units(shape, scale):
  r = np.random.default_rng(0)
  weight = r.normal(size=shape).astype(np.float32)
  gradient = (r.normal(size=shape) * 0.01 * scale).astype(np.float32)
  np.testing.assert_allclose(
    clip_unitwise(
      tf.constant(gradient), tf.constant(weight), clipping=0.01, eps=1e-3
    ),
    naive(gradient, weight, 0.01, 1e-3),
    rtol=1e-5,
  )


@pytest.mark.parametrize("shape", SHAPES)
def test_no_unit_exceeds_its_share_and_clipping_again_changes_nothing(shape):
  gradient, weight = tf.random.normal(shape) * 10.0, tf.random.normal(shape)
  once = clip_unitwise(gradient, weight, clipping=0.1)
  ratio = unitwise_norm(once) / tf.maximum(unitwise_norm(weight), 1e-3)
  assert float(tf.reduce_max(ratio)) <= 0.1 * (1 + 1e-5)
  twice = clip_unitwise(once, weight, clipping=0.1)
  np.testing.assert_allclose(once, twice, rtol=1e-5)


def test_a_unit_below_the_threshold_keeps_its_bits():
  weight, gradient = tf.ones([3, 2]), tf.fill([3, 2], 1e-3)
  clipped = clip_unitwise(gradient, weight, clipping=0.01)
  np.testing.assert_array_equal(clipped, gradient)


def test_a_weight_of_zero_can_move_by_the_floor():
  clipped = clip_unitwise(
    tf.constant(5.0), tf.constant(0.0), clipping=0.01, eps=1e-3
  )
  assert float(clipped) == pytest.approx(1e-5)


def test_a_gradient_of_zero_stays_zero():
  clipped = clip_unitwise(tf.zeros([4, 3]), tf.zeros([4, 3]), clipping=0.01)
  np.testing.assert_array_equal(clipped, np.zeros([4, 3]))


def test_a_vector_has_one_norm():
  assert unitwise_norm(tf.constant([3.0, 4.0])).numpy().tolist() == [5.0]


def test_largest_norm_has_a_floor():
  weight = tf.constant([[3.0, 0.0], [4.0, 0.0]])
  largest = max_gradient_norm(weight, clipping=0.1, eps=1e-3)
  np.testing.assert_allclose(largest, [[0.5, 1e-4]], rtol=1e-6)
