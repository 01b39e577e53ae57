"""Scaled weight standardization, and the signal's variance that it implies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.ops import fusion


def standardize(
  kernel: tf.Tensor,
  gain: tf.Tensor,
  dtype: tf.DType | None = None,
  *,
  eps: float = 1e-4,
  training: bool = False,
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
    dtype: of the result, floating; None is that of the kernel.
    eps: the floor under var * N.
    training: whether the gradient is that of `trainable_standardize`.

  Returns:
    The standardized kernel, of the same shape.
  """
  dtype = dtype or kernel.dtype
  if training:
    return trainable_standardize(kernel, gain, dtype, eps=eps)
  fan_in = kernel.shape[:-1].num_elements()
  mean, variance = tf.nn.moments(kernel, axes=[0, 1, 2], keepdims=True)
  scale = tf.math.rsqrt(tf.maximum(variance * fan_in, eps)) * gain
  return tf.cast(kernel * scale - mean * scale, dtype)


def trainable_standardize(
  kernel: tf.Tensor,
  gain: tf.Tensor,
  dtype: tf.DType,
  *,
  eps: float = 1e-4,
) -> tf.Tensor:
  """Computes `standardize`, on a CPU with a gradient that costs little.

  TensorFlow's gradient of the formula takes about twenty operations on the
  whole kernel, each a pass over memory on a CPU. In closed form, with c the
  centered kernel, s = gain / sqrt(var * N) and an upstream gradient d,

    dW = s * (d - mean(d)) - c * s * sum(d * c) / (var * N)

  and without the last term where the floor acts.

  Args:
    kernel: as for `standardize`.
    gain: likewise.
    dtype: of the result, floating.
    eps: as for `standardize`.

  Returns:
    The standardized kernel, of the same shape.
  """
  if not fusion.fuses():
    return standardize(kernel, gain, dtype, eps=eps)
  fan_in = kernel.shape[:-1].num_elements()

  @tf.custom_gradient
  def apply(kernel, gain):
    flat = tf.reshape(kernel, [fan_in, kernel.shape[-1]])
    mean, variance = tf.nn.moments(flat, axes=[0])
    power = variance * fan_in
    inverse = tf.math.rsqrt(tf.maximum(power, eps))
    scale = inverse * gain

    def gradient(upstream):
      upstream = tf.reshape(upstream, flat.shape)
      products = _centered_product(flat, mean, upstream)
      total = tf.reduce_sum(products, axis=0)
      slope = tf.where(power > eps, -scale * tf.square(inverse) * total, 0.0)
      # A mean of bfloat16 would be rounded to bfloat16.
      offset = tf.reduce_mean(tf.cast(upstream, tf.float32), axis=0)
      kernel_gradient = _kernel_gradient(
        flat, upstream, mean, scale, slope, offset
      )
      return tf.reshape(kernel_gradient, kernel.shape), inverse * total

    standardized = _scale_and_shift(flat, scale, mean * scale, dtype=dtype)
    return tf.reshape(standardized, kernel.shape), gradient

  return apply(kernel, gain)


@fusion.loop
def _scale_and_shift(kernel, scale, shift):
  return kernel * scale - shift


@fusion.loop
def _centered_product(kernel, mean, upstream):
  return (kernel - mean) * upstream


@fusion.loop
def _kernel_gradient(kernel, upstream, mean, scale, slope, offset):
  return scale * (upstream - offset) + slope * (kernel - mean)


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
