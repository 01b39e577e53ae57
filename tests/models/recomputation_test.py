"""Training with recomputed blocks: the same weights, names and files."""

import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models import layers
from nfnets_tf.models.nfnet import NFNet, layers_by_stage
from nfnets_tf.ops import stateless_random
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

IMAGES = tf.random.stateless_uniform([8, 16, 16, 3], [1, 2], maxval=255.0)
LABELS = tf.constant([0, 1, 2, 3] * 2)


def two_blocks(recompute):
  """Returns the smallest network that has both kinds of residual block."""
  options = {"bottleneck": 8, "groups": 2, "beta": 0.9, "skip_gain": 1.0}
  options |= {"stochdepth_rate": 0.5, "recompute": recompute}
  keras.utils.set_random_seed(1)
  inputs = keras.Input([16, 16, 3])
  x = layers.WSConv2D(8, 3, strides=2, name="stem")(inputs)
  x = layers.NFBlock(16, strides=2, name="transition", **options)(x)
  x = layers.NFBlock(16, name="block", **options)(x)
  x = layers.SpatialMean(name="pool")(x)
  return keras.Model(inputs, layers.ClassifierHead(4, name="classifier")(x))


def train(recompute, eager=True, **options):
  """Returns weights and averages after two steps."""
  model = Classifier(two_blocks(recompute), ema_decay=0.9, **options)
  model.compile(SGD(0.1, weight_decay=1e-3))

  def step():
    model.make_step((IMAGES, LABELS))

  step = step if eager else tf.function(step)
  for _ in range(2):
    step()
  return [v.numpy() for v in (*model.network.variables, *model.averages)]


SHARP = {"sam": SAM(0.05, scope="micro_batch"), "micro_batches": 2}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_trains_to_the_same_weights(policy):
  keras.mixed_precision.set_global_policy(policy)
  for ours, plain in zip(train(True, **SHARP), train(False, **SHARP)):
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.soak
def test_trains_to_the_same_weights_in_a_graph():
  options = {"eager": False, **SHARP}
  for ours, plain in zip(train(True, **options), train(False, **options)):
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-6)


def test_replicas_have_the_same_gradient():
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )
  with strategy.scope():
    block = layers.NFBlock(
      8, bottleneck=4, groups=1, beta=1.0, skip_gain=1.0, stochdepth_rate=0.5
    )
    block.build([None, 4, 4, 8])

  def gradients():
    context = tf.distribute.get_replica_context()
    seed = tf.stack([1, context.replica_id_in_sync_group])
    images = tf.random.stateless_uniform([4, 4, 4, 8], seed)
    with stateless_random.seed_scope(seed), tf.GradientTape() as tape:
      loss = tf.reduce_sum(block(images, training=True) ** 2)
    return tape.gradient(loss, block.trainable_variables)

  def compute(recompute):
    block.recompute = recompute
    results = tf.function(lambda: strategy.run(gradients))()
    return [strategy.experimental_local_results(x) for x in results]

  ours, plain = compute(True), compute(False)
  assert any(np.any(first != second) for first, second in plain)
  for a, b in zip(ours, plain):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_xla_does_not_merge_both_computations():
  block = layers.NFBlock(8, bottleneck=4, groups=1, beta=1.0, skip_gain=1.0)
  images = tf.random.normal([2, 4, 4, 8])
  block.build(images.shape)

  def products(recompute):
    block.recompute = recompute

    @tf.function(jit_compile=True)
    def gradients(images):
      with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(images, training=True) ** 2)
      return tape.gradient(loss, block.trainable_variables)

    program = gradients.experimental_get_compiler_ir(images)
    text = program(stage="optimized_hlo")
    return len(re.findall(r" (?:convolution|dot|custom-call)\(", text))

  # Four convolutions, and two products of squeeze-excite.
  assert products(True) == products(False) + 6


def test_draws_the_same_examples_again_without_a_seed():
  """In a model of a user's own nothing sets the seed of a step."""
  block = layers.NFBlock(
    4,
    bottleneck=2,
    groups=1,
    beta=1.0,
    skip_gain=1.0,
    stochdepth_rate=0.5,
    recompute=True,
  )
  inputs = tf.random.normal([64, 4, 4, 4])
  with tf.GradientTape() as tape:
    tape.watch(inputs)
    outputs = block(inputs, training=True)
  gradient = tape.gradient(outputs, inputs)
  # A dropped branch leaves the shortcut, whose gradient is 1.
  dropped = np.all(outputs.numpy() == inputs.numpy(), axis=(1, 2, 3))
  assert 16 < dropped.sum() < 48
  np.testing.assert_array_equal(
    np.all(gradient.numpy() == 1.0, axis=(1, 2, 3)), dropped
  )


def test_files_are_those_of_a_network_without(tmp_path):
  ours, plain = two_blocks(True), two_blocks(False)
  images = IMAGES / 255.0
  ours.get_layer("block").skip_gain.assign(0.5)
  ours.save_weights(tmp_path / "weights.h5")
  plain.load_weights(tmp_path / "weights.h5")
  np.testing.assert_array_equal(ours(images), plain(images))
  for name in ("network.keras", "saved_model"):
    ours.save(tmp_path / name)
    again = keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(again(images), plain(images))
    assert again.get_layer("block").recompute


@pytest.mark.parametrize(
  "recompute, stages",
  [
    (False, ()),
    (True, (1, 2, 3, 4)),
    (["stage3", "stage1"], (1, 3)),
    ([], ()),
  ],
)
def test_stages_of_a_network(recompute, stages):
  network = NFNet("nano", 3, recompute=recompute)
  for name, members in layers_by_stage(network).items():
    for layer in members:
      expected = name in {f"stage{stage}" for stage in stages}
      assert getattr(layer, "recompute", False) == expected


@pytest.mark.parametrize("bad", ["stage1", ["stem"], 1, None])
def test_refuses_what_is_no_stage(bad):
  with pytest.raises(UserError, match="NFNet.recompute.*stage4"):
    NFNet("femto", 3, recompute=bad)
