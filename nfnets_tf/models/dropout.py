"""Dropout of entries and of whole residual branches.

Both draw from the step's seed (`ops.stateless_random`), so that a step that is
repeated, by SAM or after a restart, drops the same.
"""

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops import stateless_random

register = keras.saving.register_keras_serializable(package="nfnets_tf")


def _examples(inputs: tf.Tensor):
  """Returns the number of examples, static where it is known: TPUs need it."""
  return inputs.shape[0] or tf.shape(inputs)[0]


@register
class Dropout(keras.layers.Layer):
  """Dropout whose mask follows from the step's seed (`ops.stateless_random`).

  All axes of its input but the batch axis have a static size.

  Args:
    rate: probability that an entry is dropped; the rest is scaled up.
  """

  def __init__(self, rate: float = 0.0, **kwargs):
    super().__init__(**kwargs)
    self.rate = rate

  def call(self, inputs, training=False):
    if not training or not self.rate:
      return inputs
    numbers = stateless_random.uniform(
      self.name, [_examples(inputs), *inputs.shape[1:]]
    )
    keep = tf.cast(numbers >= self.rate, inputs.dtype)
    return inputs * keep / (1.0 - self.rate)

  def get_config(self):
    return {**super().get_config(), "rate": self.rate}


@register
class StochasticDepth(keras.layers.Layer):
  """Zeroes whole examples at random in training, without rescaling the rest.

  DeepMind's form: examples that are kept are not divided by their probability.

  Args:
    rate: probability that an example's residual branch is dropped.
  """

  def __init__(self, rate: float = 0.0, **kwargs):
    super().__init__(**kwargs)
    self.rate = rate

  def call(self, inputs, training=False):
    keep = self.draw(inputs) if training else None
    return inputs if keep is None else inputs * keep

  def draw(self, inputs):
    """Returns 1 for an example that is kept, else 0; None if all are.

    Args:
      inputs: float [examples, height, width, channels].

    Returns:
      [examples, 1, 1, 1], of the inputs' type.
    """
    if not self.rate:
      return None
    numbers = stateless_random.uniform(self.name, [_examples(inputs), 1, 1, 1])
    return tf.cast(numbers >= self.rate, inputs.dtype)

  def get_config(self):
    return {**super().get_config(), "rate": self.rate}
