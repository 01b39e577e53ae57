import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.ops import fusion
from nfnets_tf.ops.weight_standardization import (
  input_scales,
  standardize,
  standardize_sparse,
  trainable_standardize,
)


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


def value_and_gradients(function, kernel, gain, upstream):
  with tf.GradientTape() as tape:
    tape.watch([kernel, gain])
    out = function(kernel, gain)
  return [out, *tape.gradient(out, [kernel, gain], upstream)]


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_trainable_form_has_the_same_gradients(dtype):
  r = np.random.default_rng(0)
  kernel = r.normal(0.3, 2.0, [3, 3, 5, 7])
  kernel[..., 2] *= 1e-5  # the floor acts
  kernel[..., 3] += 30.0  # far from centered
  gain = r.normal(1.0, 0.5, [7])
  upstream = tf.cast(r.normal(size=kernel.shape), dtype)

  exact = value_and_gradients(
    standardize,
    tf.constant(kernel),
    tf.constant(gain),
    tf.cast(upstream, tf.float64),
  )
  ours = value_and_gradients(
    lambda kernel, gain: trainable_standardize(kernel, gain, dtype),
    tf.constant(kernel, tf.float32),
    tf.constant(gain, tf.float32),
    upstream,
  )
  assert [x.dtype for x in ours] == [dtype, tf.float32, tf.float32]
  rounding = 2e-5 if dtype == tf.float32 else 2**-8
  for found, wanted, tolerance in zip(ours, exact, (rounding, 2e-5, 2e-5)):
    for unit in range(7):
      a, b = found[..., unit], wanted[..., unit]
      size = float(tf.reduce_max(tf.abs(b)))
      np.testing.assert_allclose(
        tf.cast(a, tf.float64), b, rtol=0, atol=tolerance * size
      )


def test_trainable_form_without_loops_is_the_plain_one(monkeypatch):
  monkeypatch.setattr(fusion, "fuses", lambda: False)
  kernel, gain = tf.random.normal([3, 3, 5, 7]), tf.random.normal([7])
  plain = value_and_gradients(standardize, kernel, gain, kernel)
  ours = value_and_gradients(
    lambda k, g: trainable_standardize(k, g, tf.float32), kernel, gain, kernel
  )
  for a, b in zip(ours, plain):
    np.testing.assert_array_equal(a, b)


def test_transition_sees_previous_stage_and_resets_variance():
  scales = input_scales((3, 2), alpha=0.2)
  # Worked by hand: variance 1, 1.04, 1.08; the transition of stage 2 sees 1.12.
  variances = [1.0, 1.04, 1.08, 1.12, 1.04]
  expected = [1 / math.sqrt(variance) for variance in variances]
  for got, want in zip(scales, expected):
    assert math.isclose(got, want, rel_tol=1e-12)
  assert len(scales) == 5


def naive_sparse(kernel, gain, upstream, eps=1e-4):
  """Returns (result, gradient of the kernel, of the gain) over live entries."""
  out, slope = np.zeros(kernel.shape), np.zeros(kernel.shape)
  gain_slope = np.zeros(gain.shape)
  for unit in range(kernel.shape[-1]):
    live = kernel[..., unit] != 0
    w = kernel[..., unit][live].astype(np.float64)
    d = upstream[..., unit][live].astype(np.float64)
    c = w - w.mean()
    norm = np.sqrt(max((c**2).sum(), eps))
    unscaled = c / norm
    along = (d * unscaled).sum() * ((c**2).sum() > eps)
    out[..., unit][live] = gain[unit] * unscaled
    slope[..., unit][live] = (
      gain[unit] / norm * (d - d.mean() - along * unscaled)
    )
    gain_slope[unit] = (d * unscaled).sum()
  return out, slope, gain_slope


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_sparse_form_and_its_gradients_are_those_of_live_entries(
  dtype, training
):
  r = np.random.default_rng(0)
  kernel = r.normal(0.3, 2.0, [3, 3, 8, 7]).astype(np.float32)
  kernel *= r.random(kernel.shape) < 0.3
  kernel[..., 2] *= 1e-4  # the floor acts
  gain = r.normal(1.0, 0.5, [7]).astype(np.float32)
  upstream = tf.cast(r.normal(size=kernel.shape), dtype)
  form = functools.partial(standardize_sparse, dtype=dtype, training=training)
  result = value_and_gradients(
    form, tf.constant(kernel), tf.constant(gain), upstream
  )
  expected = naive_sparse(kernel, gain, tf.cast(upstream, tf.float64).numpy())
  rounding = 1e-6 if dtype == tf.float32 else 1e-2
  for got, want in zip(result, expected):
    got = tf.cast(got, tf.float32).numpy()
    np.testing.assert_allclose(got, want, atol=rounding * np.abs(want).max())
  assert (tf.cast(result[0], tf.float32).numpy()[kernel == 0] == 0).all()
  assert (result[1].numpy()[kernel == 0] == 0).all()


@pytest.mark.parametrize("statistics", ["live", "all"])
def test_sparse_forms_of_a_dense_kernel_are_the_dense_one(statistics):
  kernel = tf.random.normal([3, 3, 5, 7], mean=0.3, seed=1)
  gain = tf.random.normal([7], seed=2)
  np.testing.assert_allclose(
    standardize_sparse(kernel, gain, statistics=statistics),
    standardize(kernel, gain),
    atol=1e-6,
  )


def test_only_live_statistics_center_a_pruned_filter_and_keep_its_norm():
  r = np.random.default_rng(0)
  kernel = r.normal(0.3, 1.0, [3, 3, 64, 16]).astype(np.float32)
  kernel[np.abs(kernel) < 1.0] = 0.0
  gain = np.ones(16, np.float32)
  live, whole = (
    standardize_sparse(kernel, gain, statistics=each)
    for each in ("live", "all")
  )
  np.testing.assert_allclose(tf.reduce_sum(live, [0, 1, 2]), 0.0, atol=1e-4)
  np.testing.assert_allclose(tf.reduce_sum(live**2, [0, 1, 2]), 1.0, rtol=1e-5)
  assert (tf.reduce_sum(whole, [0, 1, 2]).numpy() > 1.0).all()
  assert (tf.reduce_sum(whole**2, [0, 1, 2]).numpy() < 1.0).all()
