"""Micro-batches and SAM's two passes against references written out."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.ops.losses import softmax_cross_entropy
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.metrics import compute_example_metrics
from nfnets_tf.train.train_step import (
  ReplicaBatch,
  check_micro_batches,
  locate_in_global_batch,
  pad_if_empty,
  slice_examples,
)

R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, 8)
# Replica contexts of one device.
STRATEGY = tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.fixture
def model(tiny_network):
  return Classifier(tiny_network(), ema_decay=None)


def compute_losses(model, images, labels, weights=None):
  logits = model(images, training=True)
  losses = softmax_cross_entropy(logits, labels, label_smoothing=0.1)
  metrics = compute_example_metrics(logits, labels, losses, weights)
  return losses * metrics.weights, metrics


def replica_batch(model, data, *, seed=0, replicas=1, micro_batches=1):
  return ReplicaBatch(
    functools.partial(compute_losses, model),
    model.network.trainable_variables,
    data,
    seed=tf.constant([7, seed]),
    replicas=replicas,
    micro_batches=micro_batches,
  )


def gradient(model, sam=None, step=0, size=8, weights=None, **options):
  """Computes the gradient as a training step does."""

  @tf.function
  def run():
    data = [tf.constant(IMAGES[:size]), tf.constant(LABELS[:size])]
    data += [] if weights is None else [tf.constant(weights)]
    batch = replica_batch(model, data, **options)
    return batch.gradient(sam, tf.constant(step))

  return STRATEGY.run(run)


def values(model):
  return [v.numpy() for v in model.network.trainable_variables]


def assert_close(a, b, tolerance=1e-6):
  for x, y in zip(a, b):
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def max_difference(a, b):
  return max(np.abs(x - y).max() for x, y in zip(a, b))


def assert_equal(a, b):
  for x, y in zip(a, b):
    np.testing.assert_array_equal(x, y)


def numpy_gradient(weights, x, y):
  """Softmax cross-entropy of a linear classifier: (gradient, loss)."""
  kernel, bias = weights
  logits = x @ kernel + bias
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  delta = (p - np.eye(3)[y]) / len(y)
  loss = -np.log(p[np.arange(len(y)), y]).mean()
  return [x.T @ delta, delta.sum(0)], loss


@pytest.mark.parametrize("fraction, few", [(1.0, 6), (0.5, 3)])
def test_sam_step_matches_numpy(fraction, few):
  """Foret et al. 2020, equations 2 and 3, then momentum SGD by hand."""
  network = keras.Sequential(
    [keras.Input([2, 1, 3]), keras.layers.Flatten(), keras.layers.Dense(3)]
  )
  model = Classifier(
    network,
    label_smoothing=0.0,
    ema_decay=None,
    mean_rgb=(0, 0, 0),
    stddev_rgb=(1 / 255,) * 3,
    sam=SAM(0.3, ascent_fraction=fraction),
  )
  options = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.1}
  model.compile(SGD(0.5, clipping=None, **options))
  weights = [w.astype(np.float64) for w in network.get_weights()]
  velocity = [np.zeros_like(w) for w in weights]
  for step in range(3):
    r = np.random.default_rng(step)
    x, y = r.standard_normal([6, 6]), r.integers(0, 3, 6)
    logs = model.train_on_batch(
      np.float32(x).reshape(6, 2, 1, 3), y, return_dict=True
    )
    model.reset_metrics()
    ascent, clean = numpy_gradient(weights, x[:few], y[:few])
    norm = np.sqrt(sum((g**2).sum() for g in ascent))
    perturbed = [w + 0.3 * g / norm for w, g in zip(weights, ascent)]
    gradient, loss = numpy_gradient(perturbed, x, y)
    length = np.sqrt(sum((g**2).sum() for g in gradient))
    gradient[0] += 0.1 * weights[0]  # decay acts on the kernel, at w itself
    velocity = [0.9 * v + g for v, g in zip(velocity, gradient)]
    weights = [w - 0.5 * v for w, v in zip(weights, velocity)]
    assert_close(network.get_weights(), weights)
    assert logs["loss"] == pytest.approx(clean, rel=1e-6)
    assert logs["perturbed_loss"] == pytest.approx(loss, rel=1e-6)
    assert logs["gradient_norm"] == pytest.approx(length, rel=1e-6)
    assert logs["sam_active"] == 1.0


@pytest.mark.parametrize(
  "policy, scope", [("float32", "replica"), ("mixed_bfloat16", "global")]
)
def test_sam_with_rho_0_is_bit_identical_to_plain_step(
  tiny_network, policy, scope
):
  keras.mixed_precision.set_global_policy(policy)
  model = Classifier(tiny_network(), ema_decay=None)
  plain, sharp = gradient(model), gradient(model, SAM(0.0, scope=scope))
  assert_equal(sharp.gradients, plain.gradients)
  # Other random numbers in the second pass would give other losses.
  assert_equal(sharp.clean, plain.clean)
  assert_equal(sharp.perturbed, plain.clean)
  other = gradient(model, seed=1)
  assert not np.array_equal(other.clean.losses, plain.clean.losses)


def test_both_passes_draw_the_same_random_numbers(model):
  sharp = gradient(model, SAM(0.0, ascent_fraction=0.5))
  assert sharp.clean.losses.shape == [4]
  assert_close([sharp.clean.losses], [sharp.perturbed.losses[:4]])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_sam_changes_the_gradient_but_no_weight(tiny_network, policy):
  keras.mixed_precision.set_global_policy(policy)
  model = Classifier(tiny_network(), ema_decay=None)
  before, plain = values(model), gradient(model)
  sharp = gradient(model, SAM(0.5))
  assert_equal(values(model), before)
  assert max_difference(sharp.gradients, plain.gradients) > 1e-2
  # The first pass climbs, so the loss of the second is higher.
  ascent, descent = (
    tf.reduce_mean(x.losses) for x in (sharp.clean, sharp.perturbed)
  )
  assert descent > ascent
  assert_equal(sharp.clean, plain.clean)


def test_micro_batches_give_the_gradient_of_the_whole_batch(model):
  weights = np.float32([1, 1, 0, 1, 0.5, 1, 1, 2])
  whole = gradient(model, weights=weights)
  for count in (2, 8):
    split = gradient(model, micro_batches=count, weights=weights)
    assert_close(split.gradients, whole.gradients)
    assert_close(split.clean, whole.clean)


@pytest.mark.parametrize(
  "sam, count",
  [
    (SAM(0.5), 4),
    (SAM(0.5, scope="global"), 4),
    # The ascent takes its fraction of the batch, not of each micro-batch.
    (SAM(0.5, ascent_fraction=0.25), 2),
    (SAM(0.5, ascent_fraction=0.25), 8),
  ],
)
def test_micro_batches_share_one_perturbation(model, sam, count):
  whole = gradient(model, sam)
  split = gradient(model, sam, micro_batches=count)
  assert_close(split.gradients, whole.gradients)
  assert_close(split.clean, whole.clean)
  assert_close(split.perturbed, whole.perturbed)


def test_scope_micro_batch_perturbs_each_micro_batch_alone(tiny_network):
  """The mean of their SAM gradients, as in the SAM paper's section 4.1."""
  network = tiny_network(drop_rate=0.0, stochdepth_rate=0.0)
  model = Classifier(network, ema_decay=None)
  sam = SAM(0.5, scope="micro_batch")
  split = gradient(model, sam, micro_batches=2)
  halves = [
    replica_batch(
      model, [tf.constant(a[start : start + 4]) for a in (IMAGES, LABELS)]
    ).gradient(sam, tf.constant(0))
    for start in (0, 4)
  ]
  mean = [(a + b) / 2 for a, b in zip(halves[0].gradients, halves[1].gradients)]
  assert_close(split.gradients, mean)
  shared = gradient(model, SAM(0.5), micro_batches=2)
  assert max_difference(shared.gradients, split.gradients) > 1e-4


@pytest.mark.parametrize("scope", ["micro_batch", "replica", "global"])
def test_perturbs_every_second_step(model, scope):
  plain, always = gradient(model), gradient(model, SAM(0.5, scope=scope))
  sam = SAM(0.5, scope=scope, every=2)
  even, odd = (gradient(model, sam, step=step) for step in (4, 5))
  assert even.sam_active == 1.0 and odd.sam_active == 0.0
  assert_close(odd.gradients, plain.gradients)
  assert_equal([odd.perturbed.weights], [np.zeros(8)])
  rows = odd.clean.weights.numpy() > 0
  assert_close([odd.clean.losses[rows]], [plain.clean.losses])
  assert_close(even.gradients, always.gradients)
  assert_close(even.perturbed, always.perturbed)
  rows = even.clean.weights.numpy() > 0
  assert_close([even.clean.losses[rows]], [always.clean.losses])


def gradient_of_unknown_size(model, sam, micro_batches):
  """Returns a function like `gradient` of a batch with no static size."""

  @tf.function(
    input_signature=[
      tf.TensorSpec([None, 32, 32, 3], tf.uint8),
      tf.TensorSpec([None], tf.int64),
    ]
  )
  def run(images, labels):
    batch = replica_batch(model, [images, labels], micro_batches=micro_batches)
    return batch.gradient(sam, tf.constant(0))

  return lambda size: STRATEGY.run(run, (IMAGES[:size], LABELS[:size]))


@pytest.mark.parametrize("sam", [None, SAM(0.5, ascent_fraction=0.5)])
def test_micro_batches_of_unknown_batch_size(model, sam):
  """Also where rounding up gives fewer micro-batches, or an uneven one."""
  compute = gradient_of_unknown_size(model, sam, micro_batches=4)
  for size in (1, 5, 6, 8):
    actual, expected = compute(size), gradient(model, sam, size=size)
    assert_close(actual.gradients, expected.gradients)
    assert_close(actual.clean, expected.clean)
    if sam is not None:
      assert_close(actual.perturbed, expected.perturbed)


@pytest.mark.parametrize(
  "sam", [None, *(SAM(0.5, scope=s) for s in ("micro_batch", "global"))]
)
def test_replica_without_examples_has_zero_gradient(model, sam):
  actual = gradient_of_unknown_size(model, sam, micro_batches=2)(0)
  assert tf.reduce_sum(actual.clean.weights) == 0
  assert_equal(actual.gradients, [0 * v for v in values(model)])


def test_refuses_micro_batches_that_do_not_divide():
  check_micro_batches(8, 4)
  with pytest.raises(UserError, match="7 examples .* into 2 micro-batches"):
    check_micro_batches(7, 2)
  for number in (0, -1, 2.0):
    with pytest.raises(UserError, match="Classifier.micro_batches = "):
      check_micro_batches(8, number)


def test_slices_keep_static_size():
  tensor = tf.reshape(tf.range(12), [6, 2])
  actual = slice_examples(tensor, tf.constant(2), 3)
  np.testing.assert_array_equal(actual, tensor[2:5])

  @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int32)])
  def tail(tensor):
    assert slice_examples(tensor, 1, 3).shape == [3, 2]
    rest = slice_examples(tensor, 1, tf.shape(tensor)[0] - 1)
    assert rest.shape[1] == 2
    return rest

  np.testing.assert_array_equal(tail(tensor), tensor[1:])


@pytest.mark.parametrize("weighted", [False, True])
def test_pads_empty_batch_with_weight_0(weighted):
  for size in (0, 2):
    data = [tf.ones([size, 4, 4, 3], tf.uint8), tf.ones([size], tf.int64)]
    data += [tf.fill([size], 0.5)] if weighted else []
    padded, examples = pad_if_empty(data, tf.constant(size))
    assert examples == max(size, 1)
    assert [len(tensor) for tensor in padded] == [examples] * 3
    weights = [0.5 if weighted else 1.0] * size or [0.0]
    np.testing.assert_array_equal(padded[2], weights)
    np.testing.assert_array_equal(padded[1][:size], data[1])


@pytest.mark.parametrize(
  "sizes, first", [([3, 1], [0, 3]), ([2, 0], [0, 1]), ([0, 0], [0, 0])]
)
def test_locates_replicas_in_uneven_batches(sizes, first):
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )

  @tf.function
  def run():
    def replica():
      context = tf.distribute.get_replica_context()
      size = tf.gather(sizes, context.replica_id_in_sync_group)
      return tf.stack(locate_in_global_batch(size, 2))

    return strategy.run(replica)

  places = [x.numpy() for x in strategy.experimental_local_results(run())]
  assert [place[0] for place in places] == first
  assert {place[1] for place in places} == {max(sum(sizes), 1)}
