import numpy as np
import tensorflow as tf

from nfnets_tf.models.block import NFBlock


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
