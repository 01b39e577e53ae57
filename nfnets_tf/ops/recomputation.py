"""Trades time for memory: activations computed twice instead of kept.

Also known as activation checkpointing, gradient checkpointing or
rematerialization (remat).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def recomputed(
  function: Callable[..., tf.Tensor], inputs: tf.Tensor, *constants: tf.Tensor
) -> tf.Tensor:
  """Calls a function whose inner activations the backward pass recomputes.

  Between the passes only the arguments are kept. Values and gradients are those
  of function(inputs, *constants). Where operations run eagerly, the tape that
  records them keeps what is inside nonetheless.

  `tf.recompute_grad` does not serve: its recomputation waits for the gradient
  by `x + where(b == b, 0, nan)` with a bool b, which compilers simplify to x;
  then they merge both computations into one, and keep its activations.

  Args:
    function: from tensors to one tensor. It draws no random numbers, which
      would be others the second time: draw before, and pass `constants`.
    inputs: floats, to which the gradient flows.
    *constants: tensors to which no gradient flows.

  Returns:
    The result of the function.
  """

  @tf.custom_gradient
  def forward(inputs):
    def backward(upstream, variables=()):
      # In a graph the control dependency makes everything wait, the reading of
      # weights included; XLA ignores it.
      with tf.control_dependencies([upstream]):
        again = _after(inputs, upstream)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
          tape.watch([again, *variables])
          outputs = function(again, *constants)
        gradients = tape.gradient(
          outputs,
          [again, *variables],
          upstream,
          unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
      return gradients[0], gradients[1:]

    return function(inputs, *constants), backward

  return forward(inputs)


def _after(tensor: tf.Tensor, earlier: tf.Tensor) -> tf.Tensor:
  """Returns `tensor`, computed after `earlier` under every compiler.

  Args:
    tensor: floats of any shape.
    earlier: floats of any shape, not empty. If its first one is NaN, so are all
      of the result, or no compiler would believe in the dependency.
  """
  first = tf.reshape(earlier, [-1])[0]
  nan = tf.constant(float("nan"), tensor.dtype)
  return tf.where(tf.math.is_nan(first), nan, tensor)
