"""Scaled weight standardization of a convolution kernel."""

import tensorflow as tf


def standardize(
  kernel: tf.Tensor, gain: tf.Tensor, *, eps: float = 1e-4
) -> tf.Tensor:
  """Centres every filter and scales it to variance 1 / fan-in.

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
