"""Exponential moving average of the weights.

Functions over parallel lists of variables: `averages[i]` follows
`variables[i]`. The averages start as a copy, so no bias is to be corrected.
"""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow import keras


def add_averages(
  model: keras.Model, variables: Sequence[tf.Variable]
) -> list[tf.Variable]:
  """Adds to a model an average of each variable, float32 and of value 0."""
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
  """Returns min(decay, (1 + t) / (10 + t)) for step t (float32).

  The published decay of 0.99999 would remember the initial weights for 100,000
  steps; the warm-up of the released code forgets them at once.
  """
  step = tf.cast(step, tf.float32)
  return tf.minimum(decay, (1.0 + step) / (10.0 + step))


def update(
  averages: Sequence[tf.Variable],
  variables: Sequence[tf.Variable],
  decay: tf.Tensor,
) -> None:
  """Moves every average: a <- decay * a + (1 - decay) * w.

  Written a <- a - (1 - decay) * (a - w), which needs one array of its own.

  To be called in a replica context, after the weights' own update; each device
  updates its own copy, and nothing is sent.
  """

  def move(average, variable, decay):
    average.assign_sub((1.0 - decay) * (average - variable))

  def move_all(strategy, decay):
    for average, variable in zip(averages, variables):
      strategy.extended.update(
        average, move, args=(variable, decay), group=False
      )

  tf.distribute.get_replica_context().merge_call(move_all, args=(decay,))


def start(
  averages: Sequence[tf.Variable], variables: Sequence[tf.Variable]
) -> None:
  """Sets every average to its variable's value."""
  for average, variable in zip(averages, variables):
    average.assign(variable)


@contextlib.contextmanager
def exchanged(
  averages: Sequence[tf.Variable], variables: Sequence[tf.Variable]
) -> Iterator[None]:
  """Puts the averages in the weights' place, and both back at the end.

  Values are copied, never added and subtracted: afterwards every variable holds
  the same bits as before. One variable at a time needs a copy.
  """
  _exchange(averages, variables)
  try:
    yield
  finally:
    _exchange(averages, variables)


def _exchange(averages, variables):
  for average, variable in zip(averages, variables):
    held = tf.identity(variable.read_value())
    variable.assign(average)
    average.assign(held)
