"""Activations scaled to keep unit variance.

Each nonlinearity is multiplied by a constant gamma such that a standard normal
input gives an output of variance one (Brock et al. 2021, section 2). The
constants are those of the released code, to the last digit.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.ops import fusion

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


def scaled_activation(
  name: str, *, scale: float = 1.0, training: bool = False
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns x -> scale * gamma * f(x) for the nonlinearity called `name`.

  The function maps float tensors of any shape to the same shape and dtype.

  Args:
    name: a key of `GAMMAS`, such as "gelu".
    scale: a further factor.
    training: whether it is that of `trainable_activation`.

  Raises:
    UserError: if there is no such nonlinearity.
  """
  if training:
    return trainable_activation(name, scale=scale)
  function, factor = plain_activation(name), GAMMAS[name] * scale
  return lambda x: function(x) * tf.cast(factor, x.dtype)


def trainable_activation(
  name: str, *, scale: float = 1.0
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns `scaled_activation`, same shapes, with a cheap gradient on a CPU.

  Of a GELU TensorFlow keeps five tensors for the gradient, and a CPU runs its
  eight operations, and the fifteen of its gradient, one by one: a sixth of a
  training step. Here only `x` is kept, and each direction is one loop, in
  float32 inside. To be called where the operations are built.
  """
  if not fusion.fuses():
    return scaled_activation(name, scale=scale)
  forward, backward = _loops(name)

  @tf.custom_gradient
  def activate(x):
    # Flat, so that layers with as many activations share a compilation.
    flat, factor = tf.reshape(x, [-1]), tf.constant(scale)

    def gradient(upstream):
      upstream = tf.reshape(upstream, [-1])
      return tf.reshape(backward(flat, upstream, factor), tf.shape(x))

    y = tf.reshape(forward(flat, factor), tf.shape(x))
    y.set_shape(x.shape)
    return y, gradient

  return activate


@functools.cache
def _loops(name: str) -> tuple[Callable, Callable]:
  """Returns (forward, backward), which all layers share."""
  function = scaled_activation(name)

  def forward(x, factor):
    return function(x) * factor

  def backward(x, upstream, factor):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = function(x)
    return tape.gradient(y, x, upstream) * factor

  return fusion.loop(forward), fusion.loop(backward)


def plain_activation(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns f without its gamma, same shapes as `scaled_activation`."""
  if name not in _FUNCTIONS:
    raise UserError(
      f"activation = {name!r} is invalid; expected one of"
      f" {', '.join(sorted(_FUNCTIONS))}."
    )
  return _FUNCTIONS[name]
