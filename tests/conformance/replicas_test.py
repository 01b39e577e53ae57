"""Replicas compute what one device computes."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models import layers
from nfnets_tf.models.nfnet import NFBlock, NFNet
from nfnets_tf.ops import stateless_random
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.metrics import compute_example_metrics
from nfnets_tf.train.train_step import ReplicaBatch

STEPS, BATCH = 3, 8
R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [STEPS * BATCH, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, STEPS * BATCH)


def batches(strategy, weights=None):
  size = BATCH // strategy.num_replicas_in_sync
  arrays = (IMAGES, LABELS) if weights is None else (IMAGES, LABELS, weights)
  dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(size)
  return strategy.distribute_datasets_from_function(lambda context: dataset)


def femto():
  network = NFNet("femto", 4)
  for layer in network.layers:
    if isinstance(layer, NFBlock):
      layer.skip_gain.assign(1.0)  # else the branches have no part in it
  return network


def build(strategy, network=femto, **options):
  keras.utils.set_random_seed(1)
  with strategy.scope():
    network = network()
    model = Classifier(network, ema_decay=0.9, **options)
    # A clipping that bites some units and a decay that can be seen.
    model.compile(SGD(0.5, clipping=0.05, weight_decay=1e-2))
  return model


def train(strategy, **options):
  model = build(strategy, **options)
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


def mirrored(replicas, collectives=False):
  # One process cannot hold the collectives of two strategies; SAM's are run by
  # the processes of workers_test.py.
  return tf.distribute.MirroredStrategy(
    [f"CPU:{i}" for i in range(replicas)],
    None if collectives else tf.distribute.ReductionToOneDevice(),
  )


def assert_same(got, want):
  """Weights and averages to 1e-6; what is logged, clipping included, too."""
  for a, b in zip(got[0], want[0]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  for part in (1, 2):
    assert got[part].keys() == want[part].keys()
    for name, value in want[part].items():
      np.testing.assert_allclose(got[part][name], value, rtol=1e-5)


@pytest.mark.parametrize("replicas", [2, 4])
def test_weights_averages_and_metrics_equal_one_devices(one_device, replicas):
  got = train(mirrored(replicas, collectives=replicas == 2))
  assert_same(got, one_device)
  assert 0 < got[1]["clipped"][0] < 1


@pytest.fixture
def small(drawing_network):
  """Trains a network that compiles at once, and draws nothing."""
  network = functools.partial(
    drawing_network, dropout=0.0, stochastic_depth=0.0
  )
  return functools.partial(train, network=network)


ONE = tf.distribute.OneDeviceStrategy("CPU:0")


def test_sam_of_global_scope_equals_one_device_with_the_whole_batch(small):
  how = SAM(0.2, scope="global")
  want = small(ONE, sam=how)
  assert_same(small(mirrored(2), sam=how), want)
  alone = small(mirrored(2), sam=SAM(0.2, scope="replica"))
  moved = max(np.abs(a - b).max() for a, b in zip(alone[0], want[0]))
  assert moved > 1e-4  # the scope makes a difference


def test_sam_of_each_replica_equals_one_devices_micro_batches(small):
  """Which is how one device mimics many (Brock et al. 2021, A.4)."""
  how = SAM(0.2, scope="micro_batch")
  want = small(ONE, sam=how, micro_batches=2)
  assert_same(small(mirrored(2), sam=SAM(0.2, scope="replica")), want)


def test_sam_now_and_then_in_parts_on_replicas(small, monkeypatch):
  """Branches, loops and what replicas do together, all in one step."""
  how = SAM(0.2, scope="global", ascent_fraction=0.5, every=2)
  got = small(mirrored(2), sam=how, micro_batches=2)
  # The first half of each replica's images is the first half of one device's.
  order = np.arange(STEPS * BATCH).reshape(STEPS, 2, 2, 2).swapaxes(1, 2)
  for name, array in (("IMAGES", IMAGES), ("LABELS", LABELS)):
    monkeypatch.setitem(globals(), name, array[order.ravel()])
  want = small(ONE, sam=how, micro_batches=4)
  # Evaluation counts the first 19 images, which are others now.
  assert_same((*got[:2], {}), (*want[:2], {}))
  assert got[1]["sam_active"] == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("rest", [1, 3])
def test_a_last_batch_that_replicas_do_not_share_evenly(rest):
  """Each example counts as much, and a replica may get none."""
  results = []
  for strategy in (tf.distribute.OneDeviceStrategy("CPU:0"), mirrored(2)):
    model = build(strategy)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    data = data.take(4 + rest).batch(4)
    history = model.fit(data, verbose=0).history
    results.append((model.get_weights(), history["loss"]))
  for a, b in zip(results[0][0], results[1][0]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_training_has_moved_the_weights(one_device):
  start = build(tf.distribute.OneDeviceStrategy("CPU:0"))
  moved = [
    np.abs(a - b.numpy()).max()
    for a, b in zip(one_device[0], start.network.trainable_variables)
  ]
  assert max(moved) > 1e-2 and min(moved) > 0


@pytest.mark.parametrize("how", [None, SAM(0.2, scope="global", every=2)])
def test_draws_follow_the_example_and_not_the_replica(drawing_network, how):
  """With dropout and stochastic depth, too, replicas are one device."""
  want = train(ONE, network=drawing_network, sam=how)
  again = train(ONE, network=drawing_network, sam=how)
  for a, b in zip(want[0], again[0]):
    np.testing.assert_array_equal(a, b)
  for replicas in (2, 4):
    got = train(mirrored(replicas), network=drawing_network, sam=how)
    assert_same(got, want)


@pytest.mark.parametrize("known", [True, False])
def test_replicas_draw_differently_and_the_same_from_run_to_run(known):
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )
  network = keras.Sequential([keras.Input([4]), layers.Dropout(0.5)])

  @tf.function
  def step(size):
    def compute_losses(images, labels):
      logits = network(images, training=True)
      losses = tf.reduce_sum(logits, axis=1)
      return losses, compute_example_metrics(logits, labels, losses)

    def replica():
      data = [tf.ones([8, 4]), tf.zeros([8], tf.int32)]
      data = data if known else [tensor[:size] for tensor in data]
      seed = stateless_random.step_seed(0, tf.constant(3))
      options = dict(seed=seed, replicas=2, micro_batches=1)
      batch = ReplicaBatch(compute_losses, [], data, **options)
      return batch.gradient(None, tf.constant(3)).clean.losses

    return strategy.run(replica)

  first, second = (
    [x.numpy() for x in strategy.experimental_local_results(step(8))]
    for _ in range(2)
  )
  np.testing.assert_array_equal(first, second)
  assert np.any(first[0] != first[1])


@pytest.mark.parametrize("how", [None, SAM(0.2), SAM(0.2, scope="global")])
@pytest.mark.parametrize("optimizer", [SGD(0.5), keras.optimizers.SGD(0.5)])
def test_what_one_replica_finds_not_finite_changes_no_replica(
  drawing_network, how, optimizer
):
  strategy = mirrored(2)
  model = build(strategy, drawing_network, sam=how)
  with strategy.scope():
    model.compile(type(optimizer).from_config(optimizer.get_config()))
  good = np.float32(LABELS[:BATCH, None] == np.arange(4))
  bad = good.copy()
  bad[-1] = np.nan  # of the last replica

  def step(labels):
    data = tf.data.Dataset.from_tensor_slices((IMAGES[:BATCH], labels))
    data = data.batch(BATCH // 2, drop_remainder=True)
    data = strategy.distribute_datasets_from_function(lambda context: data)
    history = model.fit(data, steps_per_epoch=1, verbose=0).history
    state = [*model.network.weights, *model.averages]
    if isinstance(optimizer, SGD):  # Keras' own keeps its last step
      state += model.optimizer.momentums
    return history, [
      copy.numpy()
      for variable in state
      for copy in strategy.experimental_local_results(variable)
    ]

  _, before = step(good)
  history, after = step(bad)
  assert (
    history["skipped_steps"] == [1.0]
    and model.guard.consecutive_skips.numpy() == 1
  )
  assert model.optimizer.iterations.numpy() == 2
  for a, b in zip(before, after):
    np.testing.assert_array_equal(a, b)
  history, moved = step(good)
  assert (
    history["skipped_steps"] == [0.0]
    and model.guard.consecutive_skips.numpy() == 0
  )
  assert any(np.any(a != b) for a, b in zip(after, moved))
  assert np.isfinite([value[0] for value in history.values()]).all()
