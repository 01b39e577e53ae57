"""A network that compiles at once, for tests of everything around it.

It has what the training step, checkpoints and replicas must handle in an NFNet
(weight-standardized convolutions, a residual branch with stochastic depth,
dropout, a head) in 8 variables; the smallest NFNet has 97, and each costs the
graph its clipping, momentum and average.
"""

from __future__ import annotations

from nfnets_tf.keras_api import keras
from nfnets_tf.models import dropout, layers


def network(
  num_classes: int = 4,
  drop_rate: float = 0.3,
  stochdepth_rate: float = 0.5,
  sparse: str | None = None,
) -> keras.Model:
  """Returns two convolutions, the second one in a residual branch.

  Args:
    num_classes: of the head.
    drop_rate: of the dropout before the head, from 0 to 1.
    stochdepth_rate: probability of skipping the branch, from 0 to 1.
    sparse: of the second convolution; see `WSConv2D`.
  """
  inputs = keras.Input([None, None, 3])
  x = layers.WSConv2D(8, 3, strides=4, name="stem")(inputs)
  h = layers.ScaledActivation("gelu", name="activation")(x)
  h = layers.WSConv2D(8, 3, name="conv", sparse=sparse)(h)
  # The random draws follow from the layers' names.
  h = dropout.StochasticDepth(stochdepth_rate, name="depth")(h)
  x = layers.SpatialMean(name="mean")(keras.layers.Add(name="add")([x, h]))
  x = dropout.Dropout(drop_rate, name="dropout")(x)
  outputs = layers.ClassifierHead(num_classes, name="classifier")(x)
  return keras.Model(inputs, outputs, name="tiny")
