import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.optim.adaptive_clipping import AGC
from nfnets_tf.optim.param_groups import ParamGroup, set_group
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.optim.unitwise import (
  clip_unitwise,
  max_gradient_norm,
  measure_gradients,
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
def test_clipping_equals_a_loop_over_units(shape, scale):
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
def test_clipping_bounds_every_unit_and_is_idempotent(shape):
  gradient, weight = tf.random.normal(shape) * 10.0, tf.random.normal(shape)
  once = clip_unitwise(gradient, weight, clipping=0.1)
  ratio = unitwise_norm(once) / tf.maximum(unitwise_norm(weight), 1e-3)
  assert float(tf.reduce_max(ratio)) <= 0.1 * (1 + 1e-5)
  twice = clip_unitwise(once, weight, clipping=0.1)
  np.testing.assert_allclose(once, twice, rtol=1e-5)


def test_unit_below_the_threshold_keeps_its_bits():
  weight, gradient = tf.ones([3, 2]), tf.fill([3, 2], 1e-3)
  clipped = clip_unitwise(gradient, weight, clipping=0.01)
  np.testing.assert_array_equal(clipped, gradient)


def test_weight_of_zero_can_move_by_the_floor():
  clipped = clip_unitwise(
    tf.constant(5.0), tf.constant(0.0), clipping=0.01, eps=1e-3
  )
  assert float(clipped) == pytest.approx(1e-5)


def test_gradient_of_zero_stays_zero():
  clipped = clip_unitwise(tf.zeros([4, 3]), tf.zeros([4, 3]), clipping=0.01)
  np.testing.assert_array_equal(clipped, np.zeros([4, 3]))


def test_vector_has_one_norm():
  assert unitwise_norm(tf.constant([3.0, 4.0])).numpy().tolist() == [5.0]


def test_threshold_has_a_floor():
  weight = tf.constant([[3.0, 0.0], [4.0, 0.0]])
  largest = max_gradient_norm(weight, clipping=0.1, eps=1e-3)
  np.testing.assert_allclose(largest, [[0.5, 1e-4]], rtol=1e-6)


@pytest.mark.parametrize(
  "make", [lambda: SGD(0.1), lambda: AGC(keras.optimizers.Adam(0.1))]
)
@pytest.mark.parametrize("finite", [True, False])
def test_measured_gradients_give_the_same_step(make, finite):
  r = np.random.default_rng(0)
  shapes = [(3, 3, 2, 4), (4,), (), (4, 3), (4,)]
  start = [r.normal(size=shape).astype(np.float32) for shape in shapes]
  gradients = [tf.constant(r.normal(size=s), tf.float32) for s in shapes]
  gradients[4] = gradients[1]  # as of two biases, one added after the other
  if not finite:
    gradients[1] *= float("inf")

  def step(measured):
    variables = [tf.Variable(value) for value in start]
    set_group(variables[3], ParamGroup.HEAD_KERNEL)
    optimizer, known = make(), {}
    optimizer.build(variables)
    if measured:
      known["norms"] = measure_gradients(
        gradients, variables, optimizer, finite
      )
      unclipped = [s is None for s in known["norms"].scales]
      assert unclipped == [False, False, False, True, False]
    optimizer.apply_gradients(
      zip(gradients, variables), skip_gradients_aggregation=True, **known
    )
    return [*variables, *optimizer.variables]

  for a, b in zip(step(True), step(False)):
    np.testing.assert_array_equal(a, b)
