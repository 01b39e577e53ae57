import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.models import dropout, layers
from nfnets_tf.ops import stateless_random
from nfnets_tf.ops.weight_standardization import standardize
from nfnets_tf.optim.param_groups import ParamGroup, group_of


def test_convolution_standardizes_convolves_and_adds_the_bias():
  layer = layers.WSConv2D(6, 3, strides=2, groups=2)
  images = tf.random.normal([2, 5, 5, 4])
  layer(images)
  layer.gain.assign(tf.random.normal([6]))
  layer.bias.assign(tf.random.normal([6]))
  kernel = standardize(layer.kernel, layer.gain)
  halves = [
    tf.nn.conv2d(images[..., 2 * i : 2 * i + 2], k, 2, "SAME")
    for i, k in enumerate(tf.split(kernel, 2, axis=-1))
  ]
  expected = tf.concat(halves, -1) + layer.bias
  np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)


def test_kernels_are_standardized_in_float32_under_bfloat16():
  layer = layers.WSConv2D(4, 1, dtype="mixed_bfloat16")
  layer.build([None, 4, 4, 512])
  # bfloat16 keeps 8 bits: rounded first, the means of these filters vanish.
  layer.kernel.assign(tf.random.normal([1, 1, 512, 4], 100.0, 0.01))
  images = tf.random.normal([1, 4, 4, 512])
  exact = tf.nn.conv2d(images, standardize(layer.kernel, layer.gain), 1, "SAME")
  output = layer(images)
  assert output.dtype == tf.bfloat16
  np.testing.assert_allclose(tf.cast(output, tf.float32), exact, atol=0.05)


def test_initial_kernels_have_variance_one_over_fan_in():
  layer = layers.WSConv2D(256, 3, groups=2)
  layer.build([None, None, None, 128])
  assert float(tf.math.reduce_std(layer.kernel)) == pytest.approx(
    (9 * 64) ** -0.5, rel=0.02
  )
  # Untruncated: some values lie beyond the two deviations of Keras' default.
  largest = tf.reduce_max(tf.abs(layer.kernel)) * (9 * 64) ** 0.5
  assert float(largest) > 3.5


def test_squeeze_excite_equals_its_formula_with_plain_relu():
  layer = layers.SqueezeExcite()
  images = tf.random.normal([2, 3, 3, 8])
  layer(images)
  pooled = images.numpy().mean((1, 2))
  hidden = np.maximum(
    pooled @ layer.reduce.kernel.numpy() + layer.reduce.bias.numpy(), 0
  )
  raw = hidden @ layer.expand.kernel.numpy() + layer.expand.bias.numpy()
  scale = 2 / (1 + np.exp(-raw))
  np.testing.assert_allclose(
    layer(images), images * scale[:, None, None], rtol=1e-5, atol=1e-6
  )
  assert hidden.shape[-1] == 4


def test_stochastic_depth_drops_examples_and_rescales_none():
  layer = dropout.StochasticDepth(0.25)
  images = tf.ones([4000, 2, 2, 1])
  with stateless_random.seed_scope(tf.constant([0, 1])):
    dropped = layer(images, training=True).numpy().reshape(4000, 4)
  assert set(np.unique(dropped)) == {0.0, 1.0}  # 1, not 1 / 0.75
  assert (dropped.min(1) == dropped.max(1)).all()  # whole examples
  assert dropped[:, 0].mean() == pytest.approx(0.75, abs=0.03)
  np.testing.assert_array_equal(layer(images, training=False), images)


def test_dropout_rescales_and_draws_from_the_steps_seed():
  layer = dropout.Dropout(0.5)
  features = tf.ones([50, 100])
  with stateless_random.seed_scope(tf.constant([0, 1])):
    first = layer(features, training=True)
    again = layer(features, training=True)
  with stateless_random.seed_scope(tf.constant([0, 2])):
    other = layer(features, training=True)
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
  assert set(np.unique(first)) == {0.0, 2.0}
  np.testing.assert_array_equal(layer(features, training=False), features)


def test_means_are_summed_in_float32():
  assert layers.spatial_mean(tf.ones([2, 4, 4, 3], tf.bfloat16)).shape == [2, 3]
  images = tf.fill([1, 64, 64, 1], tf.cast(1.0, tf.bfloat16))
  mean = layers.SpatialMean(dtype="mixed_bfloat16")(images)
  assert mean.dtype == tf.float32 and mean.numpy().item() == 1.0


def test_head_is_float32_and_alone_exempt_from_clipping():
  head = layers.ClassifierHead(7, dtype="mixed_bfloat16")
  assert head(tf.ones([2, 5])).dtype == tf.float32
  assert group_of(head.kernel) is ParamGroup.HEAD_KERNEL
  assert group_of(head.bias) is ParamGroup.VECTOR
  wide = layers.ClassifierHead(1000)
  wide.build([None, 500])
  assert float(tf.math.reduce_std(wide.kernel)) == pytest.approx(0.01, rel=0.02)


def test_scaled_activation_layer():
  layer = layers.ScaledActivation("relu")
  assert float(layer(tf.constant(2.0))) == pytest.approx(2 * 1.7139588594436646)
