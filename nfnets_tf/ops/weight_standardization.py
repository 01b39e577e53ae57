"""Scaled weight standardization, and the signal's variance that it implies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf


def standardize(
  kernel: tf.Tensor, gain: tf.Tensor, *, eps: float = 1e-4
) -> tf.Tensor:
  """Centers every filter and scales it to variance 1 / fan-in.

  Brock et al. 2021, equation 1, in the form of the released code:

    W^ = (W - mean) * gain / sqrt(max(var * N, eps))

  with mean and (population) variance over the fan-in of each output channel and
  N = height * width * in_channels. The floor is a clamp: it changes nothing
  unless a filter is nearly constant.

  Args:
    kernel: float32 [height, width, in_channels / groups, out_channels].
    gain: float32 [out_channels].
    eps: the floor under var * N.

  Returns:
    The standardized kernel, float32, of the same shape.
  """
  fan_in = kernel.shape[:-1].num_elements()
  mean, variance = tf.nn.moments(kernel, axes=[0, 1, 2], keepdims=True)
  scale = tf.math.rsqrt(tf.maximum(variance * fan_in, eps)) * gain
  return kernel * scale - mean * scale


def input_scales(depths: Sequence[int], *, alpha: float) -> list[float]:
  """Returns beta, the input scale of every residual block in order.

  beta = 1 / expected standard deviation at the block's input (Brock et al.
  2021, section 3). A block adds variance alpha^2; the first block of a stage
  still sees what the stage before accumulated, and its own shortcut, taken
  after the scaling, resets the variance to 1.

  Args:
    depths: number of blocks in each stage.
    alpha: scale of the residual branch.
  """
  scales, std = [], 1.0
  for depth in depths:
    for index in range(depth):
      scales.append(1.0 / std)
      if index == 0:
        std = 1.0
      std = math.sqrt(std**2 + alpha**2)
  return scales
