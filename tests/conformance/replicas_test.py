"""Replicas compute what one device computes."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.nfnet import NFBlock, NFNet
from nfnets_tf.ops import draws
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

STEPS, BATCH = 3, 8
R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [STEPS * BATCH, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, STEPS * BATCH)


def batches(strategy, weights=None):
  size = BATCH // strategy.num_replicas_in_sync
  arrays = (IMAGES, LABELS) if weights is None else (IMAGES, LABELS, weights)
  dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(size)
  return strategy.distribute_datasets_from_function(lambda context: dataset)


def build(strategy):
  keras.utils.set_random_seed(1)
  with strategy.scope():
    network = NFNet("femto", 4)
    for layer in network.layers:
      if isinstance(layer, NFBlock):
        layer.skip_gain.assign(1.0)  # else the branches have no part in it
    model = Classifier(network, ema_decay=0.9)
    # A clipping that bites some units and a decay that can be seen.
    model.compile(SGD(0.5, clipping=0.05, weight_decay=1e-2))
  return model


def train(strategy):
  model = build(strategy)
  history = model.fit(
    batches(strategy), steps_per_epoch=STEPS, epochs=1, verbose=0
  ).history
  weights = np.float32(np.arange(STEPS * BATCH) < 19)
  result = model.evaluate(
    batches(strategy, weights), steps=STEPS, verbose=0, return_dict=True
  )
  variables = [*model.network.trainable_variables, *model.averages]
  return [v.numpy() for v in variables], history, result


@pytest.fixture(scope="module")
def one_device():
  return train(tf.distribute.OneDeviceStrategy("CPU:0"))


@pytest.mark.parametrize("replicas", [2, 4])
def test_weights_averages_and_metrics_equal_one_devices(one_device, replicas):
  devices = [f"CPU:{i}" for i in range(replicas)]
  # One process cannot hold collectives of two sizes.
  got = train(
    tf.distribute.MirroredStrategy(
      devices, tf.distribute.ReductionToOneDevice() if replicas > 2 else None
    )
  )
  for a, b in zip(got[0], one_device[0]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  for part in (1, 2):
    for name, value in one_device[part].items():
      np.testing.assert_allclose(got[part][name], value, rtol=1e-5)


def test_training_has_moved_the_weights(one_device):
  start = build(tf.distribute.OneDeviceStrategy("CPU:0"))
  moved = [
    np.abs(a - b.numpy()).max()
    for a, b in zip(one_device[0], start.network.trainable_variables)
  ]
  assert max(moved) > 1e-2 and min(moved) > 0


def test_replicas_draw_differently_and_the_same_from_run_to_run():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

  def draw():
    with strategy.scope():
      model = Classifier(NFNet("femto", 4))
      model.compile(SGD(0.1))

    @tf.function
    def step():
      def replica():
        with draws.using(draws.step_seed(0, tf.constant(3))):
          return draws.seed_for("layer")

      return strategy.run(replica)

    return [
      s.numpy().tolist() for s in strategy.experimental_local_results(step())
    ]

  first, second = draw(), draw()
  assert first == second and first[0] != first[1]
