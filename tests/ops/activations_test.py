import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.ops.activations import (
  GAMMAS,
  plain_activation,
  scaled_activation,
  trainable_activation,
)


@pytest.mark.parametrize("name", sorted(GAMMAS))
def test_standard_normal_input_gives_unit_variance(name):
  x = np.random.default_rng(0).standard_normal(2_000_000, dtype=np.float32)
  y = scaled_activation(name)(tf.constant(x)).numpy()
  assert abs(y.std() - 1.0) < 0.005


def test_gelu_is_the_tanh_approximation():
  x = np.array([-2.0, -0.5, 0.3, 1.7])
  tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  y = scaled_activation("gelu")(tf.constant(x)).numpy()
  # The exact form differs by 4e-4 here.
  np.testing.assert_allclose(y, 1.7015043497085571 * tanh, rtol=1e-7)


@pytest.mark.parametrize("name", sorted(GAMMAS))
def test_plain_activation_lacks_gamma_only(name):
  x = tf.constant([-1.5, 0.0, 0.7])
  scaled = GAMMAS[name] * plain_activation(name)(x)
  np.testing.assert_allclose(scaled_activation(name)(x), scaled, rtol=1e-6)


def test_dtype_is_kept():
  assert scaled_activation("gelu")(tf.ones(2, tf.bfloat16)).dtype == tf.bfloat16


def value_and_gradient(activate, x, upstream):
  @tf.function
  def run(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = activate(x)
    return y, tape.gradient(y, x, upstream)

  return run(x)


@pytest.mark.parametrize("name", sorted(GAMMAS))
def test_trainable_form_is_as_exact_as_the_plain_one(name):
  random = np.random.default_rng(0)
  # Where a GELU saturates, its gradient is a difference of large numbers.
  x, upstream = random.normal(scale=3, size=[2, 64, 3, 2, 5])

  def error(form, dtype):
    activate = form(name, scale=0.7)
    found = value_and_gradient(
      activate, tf.constant(x, dtype), tf.constant(upstream, dtype)
    )
    assert found[0].dtype == dtype
    return [np.abs(a.numpy() - b.numpy()).max() for a, b in zip(found, exact)]

  exact = value_and_gradient(
    scaled_activation(name, scale=0.7), tf.constant(x), tf.constant(upstream)
  )
  plain = error(scaled_activation, tf.float32)
  ours = error(trainable_activation, tf.float32)
  for ours_error, plain_error in zip(ours, plain):
    assert ours_error <= 2 * plain_error + 1e-6


def test_trainable_form_rounds_to_bfloat16_once():
  random = np.random.default_rng(0)
  x, upstream = random.normal(scale=3, size=[2, 64, 3, 2, 5])
  x, upstream = tf.cast(x, tf.bfloat16), tf.cast(upstream, tf.bfloat16)
  ours = value_and_gradient(trainable_activation("gelu"), x, upstream)
  exact = value_and_gradient(
    scaled_activation("gelu"),
    tf.cast(x, tf.float64),
    tf.cast(upstream, tf.float64),
  )
  for a, b in zip(ours, exact):
    assert a.dtype == tf.bfloat16
    # Half of a unit in the last of 8 places, and the error of float32.
    np.testing.assert_allclose(tf.cast(a, tf.float64), b, 2**-8, 5e-5)


def test_trainable_form_takes_batches_of_any_size():
  activate = trainable_activation("gelu")
  run = tf.function(activate, input_signature=[tf.TensorSpec([None, 3])])
  for batch in (0, 1, 5):
    assert run(tf.ones([batch, 3])).shape == [batch, 3]
  assert run.get_concrete_function().output_shapes.as_list() == [None, 3]


def test_unknown_activation_is_refused_by_name():
  with pytest.raises(UserError, match="'gellu' is invalid.*gelu"):
    scaled_activation("gellu")
