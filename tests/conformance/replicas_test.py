"""Replicas compute what one device computes."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models.layers import NFBlock
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from tests.support import tiny

STEPS, BATCH = 3, 8
R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [STEPS * BATCH, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, STEPS * BATCH)


def batches(strategy, weights=None):
  size = BATCH // strategy.num_replicas_in_sync
  arrays = (IMAGES, LABELS) if weights is None else (IMAGES, LABELS, weights)
  dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(size)
  return strategy.distribute_datasets_from_function(lambda context: dataset)


ONE = tf.distribute.OneDeviceStrategy("CPU:0")
# Without random numbers.
PLAIN = functools.partial(tiny.network, drop_rate=0.0, stochdepth_rate=0.0)


def femto():
  network = NFNet("femto", 4)
  for layer in network.layers:
    if isinstance(layer, NFBlock):
      layer.skip_gain.assign(1.0)  # at 0 the branches would not matter
  return network


def build(strategy, network=tiny.network, **options):
  keras.utils.set_random_seed(1)
  with strategy.scope():
    model = Classifier(network(), ema_decay=0.9, **options)
    # A clipping that affects some units and a decay that is visible.
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


def mirrored(replicas, collectives=False):
  # One process cannot hold the collectives of two strategies; the processes of
  # workers_test.py run SAM's.
  return tf.distribute.MirroredStrategy(
    [f"CPU:{i}" for i in range(replicas)],
    None if collectives else tf.distribute.ReductionToOneDevice(),
  )


def assert_same(actual, expected):
  """Compares weights and averages to 1e-6, and all metrics."""
  for a, b in zip(actual[0], expected[0]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  for part in (1, 2):
    assert actual[part].keys() == expected[part].keys()
    for name, value in expected[part].items():
      np.testing.assert_allclose(actual[part][name], value, rtol=1e-5)


@pytest.fixture(scope="module")
def femto_on_one_device():
  return train(ONE, network=femto)


@pytest.mark.soak
def test_nfnet_trains_the_same_on_two_replicas(femto_on_one_device):
  actual = train(mirrored(2, collectives=True), network=femto)
  assert_same(actual, femto_on_one_device)
  assert 0 < actual[1]["clipped"][0] < 1


@pytest.mark.soak
def test_training_moves_every_weight(femto_on_one_device):
  start = build(ONE, femto)
  changes = [
    np.abs(a - b.numpy()).max()
    for a, b in zip(femto_on_one_device[0], start.network.trainable_variables)
  ]
  assert max(changes) > 1e-2 and min(changes) > 0


@pytest.mark.parametrize(
  "sam, replicas",
  [
    (SAM(0.2, scope="global", every=2), [4]),
    pytest.param(
      SAM(0.2, scope="global", every=2), [2], marks=pytest.mark.soak
    ),
    pytest.param(None, [2, 4], marks=pytest.mark.soak),
  ],
)
def test_random_numbers_follow_the_example_not_the_replica(sam, replicas):
  """With dropout and stochastic depth, too, replicas equal one device."""
  expected = train(ONE, sam=sam)
  repeated = train(ONE, sam=sam)
  for a, b in zip(expected[0], repeated[0]):
    np.testing.assert_array_equal(a, b)
  for number in replicas:
    assert_same(train(mirrored(number), sam=sam), expected)


@pytest.fixture(scope="module")
def sam_of_replicas():
  return train(mirrored(2), network=PLAIN, sam=SAM(0.2, scope="replica"))


def test_sam_of_global_scope_equals_one_device_with_the_whole_batch(
  sam_of_replicas,
):
  sam = SAM(0.2, scope="global")
  expected = train(ONE, network=PLAIN, sam=sam)
  assert_same(train(mirrored(2), network=PLAIN, sam=sam), expected)
  separate = zip(sam_of_replicas[0], expected[0])
  changes = [np.abs(a - b).max() for a, b in separate]
  assert max(changes) > 1e-4  # the scope makes a difference


def test_sam_of_replica_scope_equals_one_devices_micro_batches(sam_of_replicas):
  """By which one device mimics many (Brock et al. 2021, A.4)."""
  sam = SAM(0.2, scope="micro_batch")
  expected = train(ONE, network=PLAIN, sam=sam, micro_batches=2)
  assert_same(sam_of_replicas, expected)


def test_sam_every_second_step_in_micro_batches_on_replicas(monkeypatch):
  """Branches, loops and all-reduces in one step."""
  sam = SAM(0.2, scope="global", ascent_fraction=0.5, every=2)
  actual = train(mirrored(2), network=PLAIN, sam=sam, micro_batches=2)
  # The first half of each replica's images is the first half of one device's.
  order = np.arange(STEPS * BATCH).reshape(STEPS, 2, 2, 2).swapaxes(1, 2)
  for name, array in (("IMAGES", IMAGES), ("LABELS", LABELS)):
    monkeypatch.setitem(globals(), name, array[order.ravel()])
  expected = train(ONE, network=PLAIN, sam=sam, micro_batches=4)
  # Evaluation counts the first 19 images, which differ now.
  assert_same((*actual[:2], {}), (*expected[:2], {}))
  assert actual[1]["sam_active"] == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("remainder", [1, 3])
def test_uneven_last_batch(remainder):
  """Each example counts as much, and one replica may have none."""
  results = []
  for strategy in (ONE, mirrored(2)):
    model = build(strategy)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    data = data.take(4 + remainder).batch(4)
    history = model.fit(data, verbose=0).history
    results.append((model.get_weights(), history["loss"]))
  for a, b in zip(results[0][0], results[1][0]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_examples_of_weight_0_count_on_no_replica():
  """The mean is over the examples of all replicas, one of which has none."""
  weights = np.float32([0, 2, 0, 1, 0, 0, 0, 0])
  results = []
  for strategy in (ONE, mirrored(2)):
    model = build(strategy, PLAIN)
    history = model.fit(
      batches(strategy, np.tile(weights, STEPS)), steps_per_epoch=1, verbose=0
    ).history
    results.append((model.get_weights(), history))
  for a, b in zip(results[0][0], results[1][0]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  for name in ("loss", "gradient_norm", "invalid_examples", "top1"):
    assert results[0][1][name] == pytest.approx(results[1][1][name], rel=1e-5)
  assert results[0][1]["invalid_examples"] == [0.75]


@pytest.mark.parametrize(
  "optimizer, sam",
  [
    (SGD(0.5), None),
    (SGD(0.5), SAM(0.2, scope="global")),
    (keras.optimizers.SGD(0.5), SAM(0.2)),
  ],
)
def test_nonfinite_values_of_one_replica_are_skipped_by_all(optimizer, sam):
  strategy = mirrored(2)
  model = build(strategy, sam=sam)
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
    if isinstance(optimizer, SGD):  # Keras' own moves by its last momentum
      state += model.optimizer.momentums
    return history, [
      copy.numpy()
      for variable in state
      for copy in strategy.experimental_local_results(variable)
    ]

  _, before = step(good)
  history, after = step(bad)
  assert history["skipped_steps"] == [1.0]
  assert model.guard.consecutive_skips.numpy() == 1
  assert model.optimizer.iterations.numpy() == 2
  for a, b in zip(before, after):
    np.testing.assert_array_equal(a, b)
  history, changed = step(good)
  assert history["skipped_steps"] == [0.0]
  assert model.guard.consecutive_skips.numpy() == 0
  assert any(np.any(a != b) for a, b in zip(after, changed))
  assert np.isfinite([value[0] for value in history.values()]).all()
