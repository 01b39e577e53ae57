import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.ops import convolution


def arguments(strides, groups):
  r = np.random.default_rng(0)
  images = tf.constant(r.normal(size=[2, 7, 6, 8]), tf.float32)
  kernel = tf.constant(r.normal(size=[3, 3, 8 // groups, 12]), tf.float32)
  return images, kernel, {"strides": strides, "groups": groups}


def gradients(function, strides, groups):
  images, kernel, options = arguments(strides, groups)
  with tf.GradientTape() as tape:
    tape.watch([images, kernel])
    output = function(images, kernel, **options)
    loss = tf.reduce_sum(tf.sin(output))
  return [output, *tape.gradient(loss, [images, kernel])]


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_kernel_and_group_by_group_agree_forward_and_backward(
  strides, groups
):
  for a, b in zip(
    gradients(convolution.conv2d, strides, groups),
    gradients(convolution.conv2d_by_group, strides, groups),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_missing_grouped_kernels_are_replaced(monkeypatch):
  monkeypatch.setattr(convolution, "grouped_kernels_run", lambda: False)
  images, kernel, options = arguments(1, 4)
  graph = tf.function(convolution.conv2d).get_concrete_function(
    images, kernel, **options
  )
  kinds = [op.type for op in graph.graph.get_operations()]
  assert kinds.count("Conv2D") == 4


def test_same_padding_adds_below_and_right_first():
  image = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
  output = convolution.conv2d(image, tf.ones([3, 3, 1, 1]), strides=2, groups=1)
  # The first window starts at the corner itself: 0+1+2 + 4+5+6 + 8+9+10.
  assert float(output[0, 0, 0, 0]) == 45.0
