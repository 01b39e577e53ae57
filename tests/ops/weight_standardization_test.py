import math

import numpy as np
import tensorflow as tf

from nfnets_tf.ops.weight_standardization import input_scales, standardize


def naive(kernel, gain, eps=1e-4):
  out = np.zeros_like(kernel, np.float64)
  fan_in = kernel[..., 0].size
  for unit in range(kernel.shape[-1]):
    filter_ = kernel[..., unit].astype(np.float64)
    variance = ((filter_ - filter_.mean()) ** 2).sum() / fan_in
    scale = gain[unit] / np.sqrt(max(variance * fan_in, eps))
    out[..., unit] = (filter_ - filter_.mean()) * scale
  return out


def test_equals_a_loop_over_filters():
  r = np.random.default_rng(0)
  kernel = r.normal(0.3, 2.0, [3, 3, 5, 7]).astype(np.float32)
  gain = r.normal(1.0, 0.5, [7]).astype(np.float32)
  np.testing.assert_allclose(
    standardize(tf.constant(kernel), tf.constant(gain)),
    naive(kernel, gain),
    rtol=1e-5,
    atol=1e-6,
  )


def test_floor_is_a_clamp_and_acts_on_nearly_constant_filters_only():
  kernel = np.zeros([1, 1, 4, 2], np.float32)
  kernel[0, 0, :, 0] = [1e-4, -1e-4, 1e-4, -1e-4]  # var * N = 4e-8 < eps
  kernel[0, 0, :, 1] = [0.1, -0.1, 0.1, -0.1]  # var * N = 0.04 > eps
  out = standardize(tf.constant(kernel), tf.ones([2])).numpy()[0, 0]
  np.testing.assert_allclose(out[:, 0], kernel[0, 0, :, 0] / 1e-2, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(out[:, 1]), 1.0, rtol=1e-6)


def test_every_filter_has_mean_zero_and_norm_gain():
  kernel = tf.random.normal([3, 3, 8, 6], mean=1.0)
  gain = tf.constant([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
  out = standardize(kernel, gain)
  np.testing.assert_allclose(tf.reduce_mean(out, [0, 1, 2]), 0.0, atol=1e-6)
  norms = tf.sqrt(tf.reduce_sum(out**2, [0, 1, 2]))
  np.testing.assert_allclose(norms, gain, rtol=1e-5)


def test_gradient_reaches_the_kernel_but_not_its_mean():
  kernel = tf.Variable(tf.random.normal([3, 3, 4, 2]))
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(standardize(kernel, tf.ones([2])) ** 3)
  gradient = tape.gradient(loss, kernel)
  assert float(tf.norm(gradient)) > 1e-3
  np.testing.assert_allclose(tf.reduce_sum(gradient, [0, 1, 2]), 0.0, atol=1e-5)


def test_transition_sees_previous_stage_and_resets_variance():
  scales = input_scales((3, 2), alpha=0.2)
  # Worked by hand: variance 1, 1.04, 1.08; the transition of stage 2 sees 1.12.
  variances = [1.0, 1.04, 1.08, 1.12, 1.04]
  expected = [1 / math.sqrt(variance) for variance in variances]
  for got, want in zip(scales, expected):
    assert math.isclose(got, want, rel_tol=1e-12)
  assert len(scales) == 5
