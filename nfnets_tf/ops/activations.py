"""Activations scaled to keep unit variance.

Each nonlinearity is multiplied by a constant gamma such that a standard normal
input gives an output of variance one (Brock et al. 2021, section 2). The
constants are those of the released code, to the last digit.
"""

from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.errors import UserError

GAMMAS = {
  "identity": 1.0,
  "celu": 1.270926833152771,
  "elu": 1.2716004848480225,
  "gelu": 1.7015043497085571,
  "leaky_relu": 1.70590341091156,
  "log_sigmoid": 1.9193484783172607,
  "relu": 1.7139588594436646,
  "relu6": 1.7131484746932983,
  "selu": 1.0008515119552612,
  "sigmoid": 4.803835391998291,
  "silu": 1.7881293296813965,
  "softsign": 2.338853120803833,
  "softplus": 1.9203323125839233,
  "tanh": 1.5939117670059204,
}

_FUNCTIONS = {
  "identity": tf.identity,
  # ELU and CELU coincide at their default alpha of 1, though the published
  # constants differ in the fourth digit.
  "celu": tf.nn.elu,
  "elu": tf.nn.elu,
  # The constant belongs to the tanh approximation (JAX's default), not to the
  # exact error function (Keras' default).
  "gelu": lambda x: tf.nn.gelu(x, approximate=True),
  "leaky_relu": lambda x: tf.nn.leaky_relu(x, alpha=0.01),
  "log_sigmoid": tf.math.log_sigmoid,
  "relu": tf.nn.relu,
  "relu6": tf.nn.relu6,
  "selu": tf.nn.selu,
  "sigmoid": tf.math.sigmoid,
  "silu": tf.nn.silu,
  "softsign": tf.nn.softsign,
  "softplus": tf.math.softplus,
  "tanh": tf.math.tanh,
}


def scaled_activation(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns x -> gamma * f(x) for the nonlinearity called `name`.

  The function maps float tensors of any shape to the same shape and dtype.

  Args:
    name: a key of `GAMMAS`, such as "gelu".

  Raises:
    UserError: if there is no such nonlinearity.
  """
  function, gamma = plain_activation(name), GAMMAS[name]
  return lambda x: function(x) * tf.cast(gamma, x.dtype)


def plain_activation(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns f without its gamma, same shapes as `scaled_activation`."""
  if name not in _FUNCTIONS:
    raise UserError(
      f"activation = {name!r} is invalid; expected one of"
      f" {', '.join(sorted(_FUNCTIONS))}."
    )
  return _FUNCTIONS[name]
