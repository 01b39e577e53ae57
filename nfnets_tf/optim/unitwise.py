"""Norms of units, and adaptive clipping of one gradient by them.

Brock et al. 2021, section 4. A unit is one output channel of a kernel, or a
whole vector or scalar: gains, biases and skip gains are clipped by one norm
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.optim.param_groups import GroupedOptimizer


def unitwise_norm(x: tf.Tensor) -> tf.Tensor:
  """Returns the Euclidean norm of every unit of `x`.

  Args:
    x: a float scalar, vector, or kernel whose last axis counts the units. A
      tensor with at most one axis longer than 1 counts as a vector.

  Returns:
    Norms of the dtype of `x`, broadcastable against it: [1, ..., 1, units] for
    a kernel, all axes 1 for a vector, [] for a scalar.
  """
  if sum(size != 1 for size in x.shape) <= 1:
    axes = list(range(x.shape.rank))
  else:
    axes = list(range(x.shape.rank - 1))
  return tf.sqrt(tf.reduce_sum(tf.square(x), axis=axes, keepdims=True))


def max_gradient_norm(
  weight: tf.Tensor, *, clipping: float, eps: float = 1e-3
) -> tf.Tensor:
  """Returns the threshold of every unit, clipping * max(|w_i|, eps).

  Args:
    weight: float, of any shape.
    clipping: lambda of equation 3.
    eps: floor under |w_i|.

  Returns:
    Norms of the shape that `unitwise_norm` gives, of the dtype of `weight`.
  """
  norm = tf.maximum(unitwise_norm(weight), eps)
  return tf.cast(clipping, weight.dtype) * norm


def clip_unitwise(
  gradient: tf.Tensor, weight: tf.Tensor, *, clipping: float, eps: float = 1e-3
) -> tf.Tensor:
  """Shrinks the gradient of each unit to a multiple of its weights' norm.

  For every unit i (Brock et al. 2021, equation 3),

    g_i <- g_i * min(1, clipping * max(|w_i|, eps) / |g_i|)

  Args:
    gradient: float, of the whole batch: summed over all replicas.
    weight: the variable's value, of the same shape and dtype.
    clipping: lambda, the largest ratio of gradient norm to weight norm.
    eps: floor under |w_i|, so that weights initialized to zero can move.

  Returns:
    The clipped gradient, same shape and dtype as `gradient`.
  """
  return gradient * clipping_scale(gradient, weight, clipping=clipping, eps=eps)


def clipping_scale(
  gradient: tf.Tensor,
  weight: tf.Tensor,
  *,
  clipping: float,
  eps: float = 1e-3,
  norm: tf.Tensor | None = None,
) -> tf.Tensor:
  """Returns the factors of `clip_unitwise`, with the same arguments.

  Args:
    gradient: see there.
    weight: likewise.
    clipping: likewise.
    eps: likewise.
    norm: `unitwise_norm` of the gradient, if it is known.

  Returns:
    One per unit, of the shape that `unitwise_norm` gives and the same dtype.
  """
  largest = max_gradient_norm(weight, clipping=clipping, eps=eps)
  norm = unitwise_norm(gradient) if norm is None else norm
  return tf.where(norm > largest, largest / tf.maximum(norm, 1e-6), 1.0)


class StepNorms(NamedTuple):
  """Norms of the gradients of a step, computed once for all that need them.

  Attributes:
    norms: `unitwise_norm` of each gradient.
    scales: parallel to `norms`, `clipping_scale` of each gradient; None where
      the optimizer does not clip.
    finite: whether the step counts, a scalar bool.
  """

  norms: list[tf.Tensor]
  scales: list[tf.Tensor | None]
  finite: tf.Tensor


def measure_gradients(
  gradients: Sequence[tf.Tensor],
  variables: Sequence[tf.Variable],
  optimizer: keras.optimizers.Optimizer,
  finite: tf.Tensor | bool,
) -> StepNorms:
  """Computes norms of gradients that are summed over replicas.

  Args:
    gradients: dense, each of the shape of its variable.
    variables: the trainable weights, before their update.
    optimizer: clips if it is a `GroupedOptimizer`.
    finite: whether gradients and losses are finite, a scalar bool.
  """
  norms = [unitwise_norm(gradient) for gradient in gradients]
  grouped = isinstance(optimizer, GroupedOptimizer)
  scales = [
    clipping_scale(
      gradient,
      tf.cast(variable.read_value(), gradient.dtype),
      clipping=optimizer.clipping,
      eps=optimizer.clipping_eps,
      norm=norm,
    )
    if grouped and optimizer.clips(variable)
    else None
    for gradient, variable, norm in zip(gradients, variables, norms)
  ]
  return StepNorms(norms, scales, tf.convert_to_tensor(finite))
