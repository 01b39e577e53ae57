"""Scaled weight standardization, and the signal's variance that it implies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.ops import fusion

STATISTICS = ("live", "all")  # of `standardize_sparse`


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


def standardize_sparse(
  kernel: tf.Tensor,
  gain: tf.Tensor,
  dtype: tf.DType | None = None,
  *,
  statistics: str = "live",
  eps: float = 1e-4,
  training: bool = False,
) -> tf.Tensor:
  """Computes `standardize` for a kernel in which zeros are pruned entries.

  Entries that are zero, called dead, stay zero and have no gradient. With
  "live" the mean, the variance and N are those of a filter's other entries, so
  that its output has variance gain^2 and no mean of its inputs, as in a dense
  network. With "all" they are those of the whole filter, whose live entries are
  then not centered. Without dead entries both equal `standardize`.

  Args:
    kernel: float32 [height, width, in_channels / groups, out_channels].
    gain: float32 [out_channels].
    dtype: of the result, floating; None is that of the kernel.
    statistics: one of `STATISTICS`.
    eps: the floor under var * N.
    training: whether a gradient will be taken, for which a CPU has a form of
      its own with "live".

  Returns:
    The standardized kernel, of the same shape.
  """
  dtype = dtype or kernel.dtype
  if training and statistics == "live" and fusion.fuses():
    return _trainable_standardize_live(kernel, gain, dtype, eps=eps)
  is_live = kernel != 0.0
  live = tf.cast(is_live, kernel.dtype)
  kernel = kernel * live  # which changes nothing but the gradient
  weights = live if statistics == "live" else tf.ones_like(live)
  count = tf.maximum(_sum_by_filter(weights), 1.0)
  mean = _sum_by_filter(kernel) / count
  centered = (kernel - mean) * weights
  power = _sum_by_filter(tf.square(centered))
  scale = tf.math.rsqrt(tf.maximum(power, eps)) * gain
  return tf.cast(tf.where(is_live, centered * scale, 0.0), dtype)


def _sum_by_filter(x: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(x, axis=[0, 1, 2], keepdims=True)


def _trainable_standardize_live(kernel, gain, dtype, *, eps) -> tf.Tensor:
  """Computes the "live" form in loops; see `trainable_standardize`.

  The gradient is the dense one with sums and means over live entries alone.
  """
  fan_in = kernel.shape[:-1].num_elements()

  @tf.custom_gradient
  def apply(kernel, gain):
    flat = tf.reshape(kernel, [fan_in, kernel.shape[-1]])
    count = tf.maximum(tf.reduce_sum(_is_live(flat), axis=0), 1.0)
    mean = tf.reduce_sum(flat, axis=0) / count
    power = tf.reduce_sum(_live_square(flat, mean), axis=0)
    inverse = tf.math.rsqrt(tf.maximum(power, eps))
    scale = inverse * gain

    def gradient(upstream):
      upstream = tf.reshape(upstream, flat.shape)
      # In float32: sums of bfloat16 would be rounded to it.
      of_live = _live_part(flat, upstream)
      total = tf.reduce_sum(_centered_product(flat, mean, of_live), axis=0)
      slope = tf.where(power > eps, -scale * tf.square(inverse) * total, 0.0)
      offset = tf.reduce_sum(of_live, axis=0) / count
      kernel_gradient = _live_kernel_gradient(
        flat, of_live, mean, scale, slope, offset
      )
      return tf.reshape(kernel_gradient, kernel.shape), inverse * total

    standardized = _scale_live(flat, mean, scale, dtype=dtype)
    return tf.reshape(standardized, kernel.shape), gradient

  return apply(kernel, gain)


def _live(kernel):
  return tf.cast(kernel != 0.0, tf.float32)


@fusion.loop
def _is_live(kernel):
  return _live(kernel)


@fusion.loop
def _live_square(kernel, mean):
  return tf.square((kernel - mean) * _live(kernel))


@fusion.loop
def _scale_live(kernel, mean, scale):
  return (kernel - mean) * scale * _live(kernel)


@fusion.loop
def _live_part(kernel, upstream):
  return upstream * _live(kernel)


@fusion.loop
def _live_kernel_gradient(kernel, upstream, mean, scale, slope, offset):
  whole = scale * (upstream - offset) + slope * (kernel - mean)
  return whole * _live(kernel)


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
