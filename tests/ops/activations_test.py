import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.ops.activations import (
  GAMMAS,
  plain_activation,
  scaled_activation,
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


def test_unknown_activation_is_refused_by_name():
  with pytest.raises(UserError, match="'gellu' is invalid.*gelu"):
    scaled_activation("gellu")
