"""Grouped convolution on every device.

`tf.nn.conv2d` accepts a kernel of in_channels / groups channels. GPUs and XLA
run it directly, and so does a CPU through oneDNN, forward and backward. Keras'
layer instead compiles grouped convolutions with XLA on a CPU, where they run at
a twentieth of the speed (docs/performance.md), so the layers of this project
call `conv2d`. Without oneDNN it convolves the groups one by one.
"""

import functools

import tensorflow as tf

from nfnets_tf.ops.fusion import runs_on_cpu


@functools.cache
def grouped_kernels_run() -> bool:
  """Returns whether a CPU here has grouped convolution and its gradient."""
  with tf.init_scope():
    images = tf.ones([1, 2, 2, 2])
    kernel = tf.ones([1, 1, 1, 2])
    try:
      with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        output = tf.nn.conv2d(images, kernel, strides=1, padding="SAME")
      tape.gradient(output, [images, kernel])
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
      return False
  return True


def conv2d(
  images: tf.Tensor, kernel: tf.Tensor, *, strides: int, groups: int
) -> tf.Tensor:
  """Convolves with SAME padding.

  Args:
    images: float [batch, height, width, in_channels].
    kernel: [height, width, in_channels / groups, out_channels], same dtype.
    strides: of both axes.
    groups: number of independent groups of channels.

  Returns:
    [batch, ceil(height / strides), ceil(width / strides), out_channels], same
    dtype.
  """
  if groups == 1 or not runs_on_cpu() or grouped_kernels_run():
    return tf.nn.conv2d(images, kernel, strides=strides, padding="SAME")
  return conv2d_by_group(images, kernel, strides=strides, groups=groups)


def conv2d_by_group(
  images: tf.Tensor, kernel: tf.Tensor, *, strides: int, groups: int
) -> tf.Tensor:
  """Computes `conv2d`, same shapes and dtypes, with a convolution per group."""
  outputs = [
    tf.nn.conv2d(part, part_kernel, strides=strides, padding="SAME")
    for part, part_kernel in zip(
      tf.split(images, groups, axis=-1), tf.split(kernel, groups, axis=-1)
    )
  ]
  return tf.concat(outputs, axis=-1)
