"""Adaptive gradient clipping (AGC), Brock et al. 2021, section 4.

A unit is one output channel of a kernel, or a whole vector or scalar: gains,
biases and skip gains are clipped by one norm each.
"""

import tensorflow as tf


def unitwise_norm(x: tf.Tensor) -> tf.Tensor:
  """Euclidean norm of every unit of `x`, broadcastable against `x`.

  Args:
    x: a scalar, a vector, or a kernel whose last axis counts the units. A
      tensor with at most one axis longer than 1 counts as a vector.

  Returns:
    Norms: all axes but the last reduced to 1 for a kernel, else all axes.
  """
  if sum(size != 1 for size in x.shape) <= 1:
    axes = list(range(x.shape.rank))
  else:
    axes = list(range(x.shape.rank - 1))
  return tf.sqrt(tf.reduce_sum(tf.square(x), axis=axes, keepdims=True))


def max_gradient_norm(
  weight: tf.Tensor, *, clipping: float, eps: float = 1e-3
) -> tf.Tensor:
  """Returns clipping * max(|w_i|, eps) for every unit i of `weight`."""
  return tf.cast(clipping, weight.dtype) * tf.maximum(
    unitwise_norm(weight), eps
  )


def clip_unitwise(
  gradient: tf.Tensor, weight: tf.Tensor, *, clipping: float, eps: float = 1e-3
) -> tf.Tensor:
  """Shrinks each unit's gradient that is large next to its weights.

  For every unit i (Brock et al. 2021, equation 3),

    g_i <- g_i * min(1, clipping * max(|w_i|, eps) / |g_i|)

  Args:
    gradient: the gradient of the whole batch, summed over all replicas.
    weight: the variable's value, of the same shape.
    clipping: lambda, the largest ratio of gradient norm to weight norm.
    eps: floor under |w_i|, so that zero-initialised weights can move.

  Returns:
    The clipped gradient, same shape and dtype as `gradient`.
  """
  largest = max_gradient_norm(weight, clipping=clipping, eps=eps)
  norm = unitwise_norm(gradient)
  scale = tf.where(norm > largest, largest / tf.maximum(norm, 1e-6), 1.0)
  return gradient * scale
