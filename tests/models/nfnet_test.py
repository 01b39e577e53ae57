import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import (
  NFBlock,
  NFNet,
  layers_by_stage,
  variables_by_stage,
)
from nfnets_tf.ops import stateless_random


def test_stochastic_depth_rises_linearly_from_zero():
  network = NFNet("nano", 3, stochdepth_rate=0.25)
  rates = [
    layer.stochdepth_rate
    for layer in network.layers
    if isinstance(layer, NFBlock)
  ]
  np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.15, 0.2])


def test_forward_pass_is_a_function_of_the_seed():
  network = NFNet("femto", 3, stochdepth_rate=0.9)
  for layer in network.layers:
    if isinstance(layer, NFBlock):
      layer.skip_gain.assign(1.0)
  images = tf.random.normal([8, 32, 32, 3])

  def logits(step):
    with stateless_random.seed_scope(tf.constant([0, step])):
      return network(images, training=True).numpy()

  np.testing.assert_array_equal(logits(1), logits(1))
  assert np.abs(logits(1) - logits(2)).max() > 1e-6


def test_skip_gain_initializes_every_block():
  network = NFNet("femto", 3, skip_gain=0.7)
  gains = [v.numpy() for v in network.variables if v.shape.rank == 0]
  np.testing.assert_array_equal(gains, np.float32([0.7] * 4))


def test_features_are_float32_under_bfloat16():
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  network = NFNet("femto", include_top=False)
  features = network(tf.zeros([2, 32, 32, 3]))
  assert features.shape == [2, 64] and features.dtype == tf.float32


def test_logits_are_float32_under_bfloat16():
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  assert NFNet("femto", 3)(tf.zeros([1, 32, 32, 3])).dtype == tf.float32


def test_drop_rate_overrides_the_variants():
  assert NFNet("femto", 3, drop_rate=0.7).get_layer("dropout").rate == 0.7


def test_any_image_size_and_batch_size():
  network = NFNet("femto", 3)
  for shape in ([1, 33, 47, 3], [3, 64, 32, 3]):
    assert network(tf.zeros(shape)).shape == [shape[0], 3]


def test_unknown_activation_is_refused():
  with pytest.raises(UserError, match="'swish' is invalid"):
    NFNet("femto", 3, activation="swish")


def test_skip_gain_of_zero_makes_a_block_its_shortcut():
  block = NFBlock(8, bottleneck=4, groups=1, beta=0.9)
  images = tf.random.normal([2, 4, 4, 8])
  np.testing.assert_array_equal(block(images), images)
  block.skip_gain.assign(1.0)
  assert np.abs(block(images) - images).max() > 1e-3


def test_the_branch_is_scaled_by_its_skip_gain():
  images = tf.random.normal([2, 4, 4, 8])
  block = NFBlock(8, bottleneck=4, groups=1, beta=0.9, skip_gain=1.0)
  branch = block(images) - images
  assert np.abs(branch).max() > 1e-3
  block.skip_gain.assign(0.5)
  np.testing.assert_allclose(block(images) - images, branch / 2, atol=1e-6)


STAGES = (
  "stem",
  "stage1",
  "stage2",
  "stage3",
  "stage4",
  "final_conv",
  "classifier",
)


def test_stages_partition_the_variables():
  network = NFNet("nano", 4)
  stages = variables_by_stage(network)
  assert tuple(stages) == STAGES
  listed = [id(v) for variables in stages.values() for v in variables]
  assert sorted(listed) == sorted(id(v) for v in network.variables)
  layers = layers_by_stage(network)
  names = [layer.name for layer in layers["stage3"]]
  assert names == ["nf_block_2", "nf_block_3"]
  assert [len(layers[name]) for name in STAGES] == [4, 1, 1, 2, 1, 1, 1]


def test_stages_without_a_top_and_of_another_network():
  headless = NFNet("femto", include_top=False)
  assert tuple(variables_by_stage(headless)) == STAGES[:-1]
  assert variables_by_stage(keras.Sequential()) == {}
