import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import ALPHA, NFBlock, NFNet
from nfnets_tf.ops.activations import GAMMAS
from nfnets_tf.ops.weight_standardization import standardize
from nfnets_tf.serving.folded_network import FoldedInference
from nfnets_tf.serving.folding import Affine, FoldedBlock, FoldedNFNet, fold


def relative(got, expected):
  return np.abs(got - expected).max() / np.abs(expected).max()


def random_images(size, count=2):
  r = np.random.default_rng(0)
  return r.standard_normal([count, size, size, 3], dtype=np.float32)


def test_kernels_absorb_gains_and_scales(model):
  """Each layer by its formula."""
  network = model.network
  block = [x for x in network.layers if isinstance(x, NFBlock)][1]
  whole = fold(network)
  folded = whole.blocks[1]
  assert isinstance(whole, FoldedNFNet) and isinstance(folded, FoldedBlock)
  gamma = GAMMAS["gelu"]

  def plain(layer):
    return standardize(layer.kernel, layer.gain).numpy()

  def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)

  entry = gamma * block.beta
  scale = 2 * ALPHA * block.skip_gain.numpy()
  close(folded.shortcut.kernel, entry * plain(block.conv_shortcut))
  close(folded.branch[0].kernel, entry * plain(block.conv0))
  close(folded.branch[1].kernel, gamma * plain(block.conv1))
  close(folded.branch[2].kernel, gamma * plain(block.conv1b))
  close(folded.last.kernel, scale * gamma * plain(block.conv2))
  close(folded.last.bias, scale * block.conv2.bias.numpy())
  reduce = block.squeeze_excite.reduce
  h = random_images(4)[..., :1] * np.ones(block.bottleneck, np.float32)
  mean = (
    (gamma * h @ plain(block.conv2)[0, 0] + block.conv2.bias)
    .numpy()
    .mean((1, 2))
  )
  close(
    h.mean((1, 2)) @ folded.gate[0].kernel + folded.gate[0].bias,
    mean @ reduce.kernel.numpy() + reduce.bias.numpy(),
  )
  assert block.strides == 2  # of the branch's 3x3, and of the shortcut's pool
  assert [x.strides for x in folded.branch] == [1, 2, 1]
  assert folded.shortcut.strides == 2 and folded.last.strides == 1


@pytest.mark.parametrize("variant, size", [("femto", 32), ("nano", 45)])
def test_logits_and_features_equal_the_unfolded_network(trained, variant, size):
  network = trained(variant, classes=7).network
  images = random_images(size)
  features, logits = FoldedInference(fold(network))(images)
  pooled = keras.Model(network.input, network.get_layer("pool").output)
  assert relative(logits, network(images)) < 1e-5
  assert relative(features, pooled(images)) < 1e-5


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
def test_other_nonlinearities_fold(trained, activation):
  network = trained(activation=activation).network
  images = random_images(32)
  _, logits = FoldedInference(fold(network))(images)
  assert relative(logits, network(images)) < 1e-5


def test_both_bottleneck_rules_fold(trained, monkeypatch):
  """Half of 24 is not a multiple of 8: one group of 12, or one of 8."""
  from nfnets_tf.models import variants

  size = variants.Variant((1, 1, 1, 1), 0.0, (24, 48, 48, 48), 8, (8, 8, 8))
  monkeypatch.setitem(variants.VARIANTS, "odd", size)
  images = random_images(32)
  for rule, width in (("released", 8), ("published", 12)):
    network = trained("odd", bottleneck_rule=rule).network
    folded = fold(network)
    assert folded.blocks[0].branch[0].bias.size == width
    _, logits = FoldedInference(folded)(images)
    assert relative(logits, network(images)) < 1e-5


def test_branch_with_skip_gain_0_is_removed(trained):
  """As in a network at its start, and in short runs at their end."""
  network = trained().network
  whole = fold(network).num_bytes
  for layer in network.layers:
    if isinstance(layer, NFBlock):
      layer.skip_gain.assign(0.0)
  folded = fold(network)
  assert all(not x.branch and x.last is None for x in folded.blocks)
  assert folded.num_bytes < whole / 2
  images = random_images(32)
  _, logits = FoldedInference(folded)(images)
  assert relative(logits, network(images)) < 1e-5


def test_folding_does_not_change_training_weights(model):
  before = [v.numpy() for v in model.network.weights]
  fold(model.network)
  for old, new in zip(before, model.network.weights):
    np.testing.assert_array_equal(old, new)


def test_all_bytes_are_counted():
  affine = Affine(np.zeros([1, 1, 2, 3], np.float32), np.zeros(3, np.float32))
  assert affine.num_bytes == 4 * (6 + 3)


def test_other_networks_are_refused():
  network = keras.Sequential([keras.Input([8]), keras.layers.Dense(2)])
  with pytest.raises(UserError, match="a Sequential was given to fold.*fold="):
    fold(network)
  with pytest.raises(UserError, match="no classifier.*include_top=True"):
    fold(NFNet("femto", include_top=False))


def test_folding_ignores_the_training_policy(trained):
  images = random_images(32)
  exact = trained().network(images)
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  network = trained().network
  _, logits = FoldedInference(fold(network))(images)
  assert logits.dtype == tf.float32
  assert relative(logits, exact) < 1e-5 < relative(network(images), exact)
