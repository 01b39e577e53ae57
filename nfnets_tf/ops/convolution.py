"""Convolution with groups on every device.

`tf.nn.conv2d` takes a kernel of in_channels / groups channels. GPUs and XLA run
that directly, and so does a CPU through oneDNN, forward and backward. Keras'
layer instead compiles grouped convolutions with XLA on a CPU, where they run at
a twentieth of the speed (docs/performance.md), so the layers of this project
call the function below. Where oneDNN is missing the groups are convolved one by
one.
"""

import functools

import tensorflow as tf


@functools.cache
def grouped_kernels_run() -> bool:
  """Whether this TensorFlow has grouped convolution and its gradient."""
  if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices(
    "TPU"
  ):
    return True
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
    images: [batch, height, width, in_channels].
    kernel: [height, width, in_channels / groups, out_channels], same dtype.
    strides: of both axes.
    groups: number of independent groups of channels.

  Returns:
    [batch, ceil(height / strides), ceil(width / strides), out_channels].
  """
  if groups == 1 or grouped_kernels_run():
    return tf.nn.conv2d(images, kernel, strides=strides, padding="SAME")
  return conv2d_by_group(images, kernel, strides=strides, groups=groups)


def conv2d_by_group(
  images: tf.Tensor, kernel: tf.Tensor, *, strides: int, groups: int
) -> tf.Tensor:
  """Does what `conv2d` does with one plain convolution a group."""
  outputs = [
    tf.nn.conv2d(part, part_kernel, strides=strides, padding="SAME")
    for part, part_kernel in zip(
      tf.split(images, groups, axis=-1), tf.split(kernel, groups, axis=-1)
    )
  ]
  return tf.concat(outputs, axis=-1)
