"""Exponential moving average of the weights.

Functions over parallel lists of variables: `averages[i]` follows `variables[i]`
and has its shape. The averages start as a copy, so there is no bias to correct.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops import fusion


def add_averages(
  model: keras.Model, variables: Sequence[tf.Variable]
) -> list[tf.Variable]:
  """Adds an average of each variable to a model.

  Args:
    model: the averages become its untrainable weights.
    variables: of any shape.

  Returns:
    float32 variables of the same shapes, filled with 0.
  """
  return [
    model.add_weight(
      f"average_{index}",
      variable.shape,
      dtype=tf.float32,
      initializer="zeros",
      trainable=False,
      experimental_autocast=False,
    )
    for index, variable in enumerate(variables)
  ]


def warmed_decay(step: tf.Tensor, decay: float) -> tf.Tensor:
  """Returns min(decay, (1 + t) / (10 + t)) for step t, a float32 scalar.

  The published decay of 0.99999 would remember the initial weights for 100,000
  steps; the warm-up of the released code forgets them within a few.

  Args:
    step: number of the step, from 0, a scalar.
    decay: in [0, 1).
  """
  step = tf.cast(step, tf.float32)
  return tf.minimum(decay, (1.0 + step) / (10.0 + step))


def update(
  averages: Sequence[tf.Variable],
  variables: Sequence[tf.Variable],
  decay: tf.Tensor,
) -> None:
  """Moves every average: a <- decay * a + (1 - decay) * w.

  Computed as a <- a - (1 - decay) * (a - w), on a CPU in one loop.

  To be called in a replica context, after the update of the weights; each
  device updates its own copy, without communication.

  Args:
    averages: float32, parallel to `variables`.
    variables: the weights, of the same shapes.
    decay: a float32 scalar in [0, 1].
  """

  def move(average, variable, rate):
    if fusion.worth_a_loop(average) and variable.dtype == tf.float32:
      _move_loop()(average.handle, variable.handle, rate)
    else:
      average.assign_sub(rate * (average - variable))

  def move_all(strategy, rate):
    for average, variable in zip(averages, variables):
      strategy.extended.update(
        average, move, args=(variable, rate), group=False
      )

  context = tf.distribute.get_replica_context()
  context.merge_call(move_all, args=(1.0 - decay,))


@functools.cache
def _move_loop():
  """Returns a compiled update, in place, shared by all averages."""
  resource, scalar = tf.TensorSpec([], tf.resource), tf.TensorSpec([])
  read, assign = tf.raw_ops.ReadVariableOp, tf.raw_ops.AssignVariableOp

  @tf.function(
    input_signature=[resource, resource, scalar],
    jit_compile=True,
    autograph=False,
  )
  def move(average, variable, rate):
    a = read(resource=average, dtype=tf.float32)
    w = read(resource=variable, dtype=tf.float32)
    assign(resource=average, value=a - rate * (a - w))

  return move


def start(
  averages: Sequence[tf.Variable], variables: Sequence[tf.Variable]
) -> None:
  """Sets every average to its variable's value.

  Those of `cost.abstractly` have none and are left alone.
  """
  for average, variable in zip(averages, variables):
    copies = isinstance(average, tf.distribute.DistributedValues)
    if copies or not tf.is_symbolic_tensor(average.handle):
      average.assign(variable)


@contextlib.contextmanager
def exchanged(
  averages: Sequence[tf.Variable], variables: Sequence[tf.Variable]
) -> Iterator[None]:
  """Swaps averages and weights, and swaps them back at the end.

  Values are copied, never added and subtracted, so every variable is restored
  bit for bit. Only one variable at a time needs a temporary copy.
  """
  _exchange(averages, variables)
  try:
    yield
  finally:
    _exchange(averages, variables)


def _exchange(averages, variables):
  for average, variable in zip(averages, variables):
    value = tf.identity(variable.read_value())
    variable.assign(average)
    average.assign(value)
